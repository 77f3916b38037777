//! Bringing a machine to the kernel's 64-bit entry point.
//!
//! Source: Linux, `Documentation/arch/x86/boot.rst` ("the boot protocol"; "64-bit boot protocol").

pub mod cpuid;
pub mod kernel;
pub mod layout;
pub mod parameters;
pub mod processor;
pub mod source;
