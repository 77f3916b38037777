//! Images, from real and from misbehaving registries to overlay mounts. Needs root and Debian's `docker-registry`.

mod cache;
mod erofs;
mod hostile;
mod kill;
mod network;
mod pull;
mod support;
