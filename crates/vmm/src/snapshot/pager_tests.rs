//! Memory served from a file in this process. Needs `/dev/userfaultfd` (Linux 6.1) and root.

use std::io::Write;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory;

const MIB: u32 = 32;
const END: u64 = (MIB as u64) << 20;
/// Where there are contents, and what: the rest of the file is a hole.
const DATA: [(u64, u8); 5] =
    [(0, 1), (5 * PAGE as u64, 2), (BLOCK as u64, 3), (100 * BLOCK as u64 - 1, 4), (END - 1, 5)];

fn device() -> OwnedFd {
    File::options().read(true).write(true).open("/dev/userfaultfd").unwrap().into()
}

fn file() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(END).unwrap();
    for (at, byte) in DATA {
        file.write_all_at(&[byte], at).unwrap();
    }
    file
}

fn served(file: &File) -> (GuestMemory, Pager, Ending) {
    let memory = memory::anonymous(MIB).unwrap();
    let ending = Ending::new().unwrap();
    let pager = Pager::start(&device(), &memory, file.try_clone().unwrap().into(), ending.clone()).unwrap();
    (memory, pager, ending)
}

#[test]
fn memory_is_as_in_the_file() {
    let file = file();
    let (memory, _pager, ending) = served(&file);
    for (at, byte) in DATA.into_iter().rev() {
        assert_eq!(memory.read_obj::<u8>(GuestAddress(at)).unwrap(), byte);
    }
    let (mut ours, mut theirs) = (vec![0; END as usize], vec![0; END as usize]);
    memory.read_slice(&mut ours, GuestAddress(0)).unwrap();
    file.read_exact_at(&mut theirs, 0).unwrap();
    assert!(ours == theirs);
    assert_eq!(ending.get(), None);
    // What is written stays, and does not reach the file.
    memory.write_obj(9_u8, GuestAddress(0)).unwrap();
    assert_eq!(memory.read_obj::<u8>(GuestAddress(0)).unwrap(), 9);
    file.read_exact_at(&mut theirs[..1], 0).unwrap();
    assert_eq!(theirs[0], 1);
}

#[test]
fn the_kernel_s_own_accesses_are_served() {
    let (memory, _pager, _) = served(&file());
    let slice = memory.get_slice(GuestAddress(5 * PAGE as u64), 2 * PAGE).unwrap();
    let guard = slice.ptr_guard();
    // SAFETY: the slice is mapped memory of this length, which nobody changes meanwhile.
    #[allow(unsafe_code)]
    let bytes = unsafe { std::slice::from_raw_parts(guard.as_ptr(), slice.len()) };
    let mut into = tempfile::tempfile().unwrap();
    // By write(2), before anything else has touched it.
    assert_eq!(into.write(bytes).unwrap(), bytes.len());
    let mut first = [0];
    into.read_exact_at(&mut first, 0).unwrap();
    assert_eq!(first, [2]);
}

#[test]
fn many_threads_may_want_the_same() {
    let (memory, _pager, ending) = served(&file());
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let memory = &memory;
            scope.spawn(move || {
                for (at, byte) in DATA.into_iter().cycle().skip(thread).take(DATA.len()) {
                    assert_eq!(memory.read_obj::<u8>(GuestAddress(at)).unwrap(), byte);
                }
                for page in (0..END).step_by(PAGE) {
                    memory.read_obj::<u8>(GuestAddress(page + 7)).unwrap();
                }
            });
        }
    });
    assert_eq!(ending.get(), None);
}

#[test]
fn what_was_given_back_to_the_host_is_zeros() {
    let (memory, _pager, _) = served(&file());
    assert_eq!(memory.read_obj::<u8>(GuestAddress(5 * PAGE as u64)).unwrap(), 2);
    let address = memory.get_host_address(GuestAddress(5 * PAGE as u64)).unwrap();
    // SAFETY: guest memory, to which nothing here refers.
    #[allow(unsafe_code)]
    unsafe {
        rustix::mm::madvise(address.cast(), PAGE, rustix::mm::Advice::LinuxDontNeed).unwrap();
    }
    assert_eq!(memory.read_obj::<u8>(GuestAddress(5 * PAGE as u64)).unwrap(), 0);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(0)).unwrap(), 1);
}

#[test]
fn a_file_that_became_shorter_is_the_machine_s_end() {
    let file = file();
    let (memory, pager, ending) = served(&file);
    assert_eq!(memory.read_obj::<u8>(GuestAddress(0)).unwrap(), 1);
    file.set_len(END / 2).unwrap();
    // Waits until it is given up.
    assert_eq!(memory.read_obj::<u8>(GuestAddress(END - 1)).unwrap(), 0);
    let Some(Ended::Failed { message }) = ending.get() else { panic!() };
    assert!(message.contains("memory cannot be read"), "{message}");
    drop(pager);
}

#[test]
fn another_file_is_no_userfaultfd() {
    let memory = memory::anonymous(MIB).unwrap();
    let other = File::open("/dev/null").unwrap().into();
    assert!(Pager::start(&other, &memory, file().into(), Ending::new().unwrap()).is_err());
}

/// As the monitor in its jail, to which the agent hands the device over: the kernel's own accesses
/// (KVM's, those of disks) are served, too, whatever `vm.unprivileged_userfaultfd` says.
#[test]
fn no_privileges_are_needed() {
    const NOBODY: libc::c_long = 65534;
    let device = device();
    let thread = std::thread::spawn(move || {
        // The system call itself changes this thread only, and those that it starts; the C library's
        // function would change them all (setresuid(2), "C library/kernel differences").
        // SAFETY: takes numbers.
        #[allow(unsafe_code)]
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        assert_eq!(changed, 0, "root");
        assert!(File::open("/dev/userfaultfd").is_err());
        let memory = memory::anonymous(MIB).unwrap();
        let ending = Ending::new().unwrap();
        let _pager = Pager::start(&device, &memory, file().into(), ending.clone()).unwrap();
        let mut into = tempfile::tempfile().unwrap();
        memory.write_volatile_to(GuestAddress(5 * PAGE as u64), &mut into, 2 * PAGE).unwrap();
        let mut first = [0];
        into.read_exact_at(&mut first, 0).unwrap();
        assert_eq!((first, ending.get()), ([2], None));
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
