//! Which devices the processes of a container may use: as the rules of the `devices` controller of
//! control groups version 1, and as the program that version 2 has in its place.
//!
//! Sources: "Device Whitelist Controller" in the kernel's documentation of version 1, and "Device
//! controller" of version 2; the instructions are those of "BPF Instruction Set".

use std::fmt;

use oci_spec::runtime::LinuxDeviceType;

use crate::devices::Device;
use crate::sys::bpf::Instruction;

// <linux/bpf.h>
const BPF_DEVCG_ACC_MKNOD: u32 = 1;
const BPF_DEVCG_ACC_READ: u32 = 2;
const BPF_DEVCG_ACC_WRITE: u32 = 4;
const BPF_DEVCG_DEV_BLOCK: u32 = 1;
const BPF_DEVCG_DEV_CHAR: u32 = 2;

/// What may be done with a device, or with all of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    is_block: bool,
    /// `None`: any.
    major: Option<u32>,
    minor: Option<u32>,
    read: bool,
    write: bool,
    mknod: bool,
}

const fn node(is_block: bool) -> Rule {
    Rule { is_block, major: None, minor: None, read: false, write: false, mknod: true }
}

const fn character(major: u32, minor: Option<u32>) -> Rule {
    Rule { is_block: false, major: Some(major), minor, read: true, write: true, mknod: true }
}

/// What Docker allows: making nodes, and null, zero, full, random, urandom, tty, console, ptmx, and
/// terminals.
const USUAL: [Rule; 11] = [
    node(false),
    node(true),
    character(1, Some(3)),
    character(1, Some(5)),
    character(1, Some(7)),
    character(1, Some(8)),
    character(1, Some(9)),
    character(5, Some(0)),
    character(5, Some(1)),
    character(5, Some(2)),
    character(136, None),
];

/// The rules of a container with these devices beside the usual ones.
pub fn of(devices: &[Device]) -> Vec<Rule> {
    let named = devices.iter().map(|device| Rule {
        is_block: device.node.typ() == LinuxDeviceType::B,
        // A number that is none matches no device.
        major: Some(u32::try_from(device.node.major()).unwrap_or(u32::MAX)),
        minor: Some(u32::try_from(device.node.minor()).unwrap_or(u32::MAX)),
        read: device.read,
        write: device.write,
        mknod: device.mknod,
    });
    USUAL.into_iter().chain(named).collect()
}

impl fmt::Display for Rule {
    /// As version 1 reads it, such as `c 136:* rwm`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |n| n.to_string());
        let kind = if self.is_block { 'b' } else { 'c' };
        write!(f, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        for (is_allowed, letter) in [(self.read, "r"), (self.write, "w"), (self.mknod, "m")] {
            f.write_str(if is_allowed { letter } else { "" })?;
        }
        Ok(())
    }
}

impl Rule {
    fn access(self) -> u32 {
        let bits = [
            (self.mknod, BPF_DEVCG_ACC_MKNOD),
            (self.read, BPF_DEVCG_ACC_READ),
            (self.write, BPF_DEVCG_ACC_WRITE),
        ];
        bits.into_iter().filter(|(is_allowed, _)| *is_allowed).map(|(_, bit)| bit).sum()
    }

    /// Allows what the rule allows; else falls through to what comes next.
    fn instructions(self) -> Vec<Instruction> {
        let kind = if self.is_block { BPF_DEVCG_DEV_BLOCK } else { BPF_DEVCG_DEV_CHAR };
        let mut checks = vec![(KIND, kind)];
        checks.extend(self.major.map(|major| (MAJOR, major)));
        checks.extend(self.minor.map(|minor| (MINOR, minor)));
        let mut code = Vec::new();
        // What is wanted beyond what is allowed.
        code.push(move_register(SCRATCH, ACCESS));
        code.push(and(SCRATCH, !self.access()));
        checks.insert(0, (SCRATCH, 0));
        let allow = [set(RESULT, 1), EXIT];
        for (done, (register, value)) in checks.iter().enumerate() {
            let rest = checks.len() - done - 1 + allow.len();
            code.push(jump_unless_equal(*register, *value, rest));
        }
        code.extend(allow);
        code
    }
}

// Registers: the program gets its context in the second, and answers in the first.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

const EXIT: Instruction = Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 };

/// A word of the context, `struct bpf_cgroup_dev_ctx`.
fn load(to: u8, offset: i16) -> Instruction {
    Instruction { code: 0x61, registers: CONTEXT << 4 | to, offset, immediate: 0 }
}

fn move_register(to: u8, from: u8) -> Instruction {
    Instruction { code: 0xbc, registers: from << 4 | to, offset: 0, immediate: 0 }
}

fn with_immediate(code: u8, register: u8, value: u32) -> Instruction {
    Instruction { code, registers: register, offset: 0, immediate: value.cast_signed() }
}

fn set(register: u8, value: u32) -> Instruction {
    with_immediate(0xb4, register, value)
}

fn and(register: u8, value: u32) -> Instruction {
    with_immediate(0x54, register, value)
}

fn shift_right(register: u8, bits: u32) -> Instruction {
    with_immediate(0x74, register, bits)
}

/// Compares 32 bits.
fn jump_unless_equal(register: u8, value: u32, over: usize) -> Instruction {
    let offset = i16::try_from(over).unwrap_or(i16::MAX);
    Instruction { offset, ..with_immediate(0x56, register, value) }
}

/// The program that allows what any of the rules does, and nothing else.
pub fn program(rules: &[Rule]) -> Vec<Instruction> {
    // The access that is wanted is in the upper half of the word that has the device's kind.
    let mut code = vec![
        load(KIND, 0),
        move_register(ACCESS, KIND),
        and(KIND, 0xffff),
        shift_right(ACCESS, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    code.extend(rules.iter().flat_map(|rule| rule.instructions()));
    code.extend([set(RESULT, 0), EXIT]);
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::path::{Path, PathBuf};

    #[test]
    fn rules_are_dockers() {
        let texts: Vec<_> = of(&[]).iter().map(ToString::to_string).collect();
        assert_eq!(texts[..3], ["c *:* m", "b *:* m", "c 1:3 rwm"]);
        assert_eq!(texts[10], "c 136:* rwm");
    }

    /// Where version 2 is mounted on this machine, beside version 1 or alone.
    fn unified() -> Option<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mut lines = mounts.lines().map(|line| line.split(' '));
        lines.find_map(|mut fields| {
            let point = fields.nth(1)?;
            (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
        })
    }

    struct Group(PathBuf);

    impl Drop for Group {
        fn drop(&mut self) {
            let _ = fs::remove_dir(&self.0);
        }
    }

    /// Whether a process of the group can open a device.
    fn opens(group: &Path, device: &str, mode: &str) -> bool {
        let script = format!("echo 0 > {}/cgroup.procs && exec 3{mode}{device}", group.display());
        std::process::Command::new("sh").args(["-c", &script]).output().unwrap().status.success()
    }

    #[test]
    fn the_kernel_obeys_the_program() {
        let Some(root) = unified() else { return };
        let group = Group(root.join(format!("coracle-test-devices-{}", std::process::id())));
        fs::create_dir(&group.0).unwrap();
        let full = Device {
            node: oci_spec::runtime::LinuxDeviceBuilder::default()
                .path("/dev/kmsg")
                .typ(LinuxDeviceType::C)
                .major(1)
                .minor(11)
                .build()
                .unwrap(),
            read: true,
            write: false,
            mknod: false,
        };
        assert!(opens(&group.0, "/dev/kmsg", ">"));
        crate::sys::bpf::filter_devices(File::open(&group.0).unwrap(), &program(&of(&[full]))).unwrap();
        assert!(opens(&group.0, "/dev/null", ">") && opens(&group.0, "/dev/urandom", "<"));
        assert!(opens(&group.0, "/dev/kmsg", "<") && !opens(&group.0, "/dev/kmsg", ">"));
        assert!(!opens(&group.0, "/dev/loop-control", "<"));
    }
}
