"""Tests on whole hosts, nearer to a user's machines than network namespaces: systemd, packages, virtual machines."""
