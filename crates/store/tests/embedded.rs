//! What is particular to the embedded engine: its file, crashes, a full disk.

mod embedded {
    mod backup;
    mod crash;
    mod disk_full;
    mod file;
    mod two_openers;
}
mod support;
