"""Messages of etcd's v3 API, generated from etcd.proto beside this file (`make proto`)."""
