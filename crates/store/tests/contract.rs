//! The contract, through the public interface only: every engine has to pass it.

mod contract {
    mod json;
    mod kv;
    mod lease;
    mod limits;
    mod model;
    mod watch;
}
mod support;
