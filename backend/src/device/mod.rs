//! The virtio-fs device on vhost-user.
