//! The vhost-user virtio-fs daemon.
