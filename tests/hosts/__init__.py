"""Tests on hosts with a kernel, or at least an init system, of their own."""
