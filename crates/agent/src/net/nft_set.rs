//! Elements of nftables sets, changed without running `nft`: an exec costs some 10 ms, this some
//! tens of microseconds.
//!
//! Only what per-task changes need: add, delete and replace elements of one set, in one
//! transaction. Wire format: linux/netfilter/nfnetlink.h and nf_tables.h (`NFT_MSG_NEWSETELEM`).

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};

use rtnetlink::sys::{Socket, protocols::NETLINK_NETFILTER};

use super::{netlink, netns};

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWSETELEM: u16 = (NFNL_SUBSYS_NFTABLES << 8) | 12;
const NFT_MSG_DELSETELEM: u16 = (NFNL_SUBSYS_NFTABLES << 8) | 14;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;
const NLA_F_NESTED: u16 = 1 << 15;
const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;

/// A netlink attribute's length is 16 bits: elements of a message stay well below.
const ELEMENTS_PER_MESSAGE: usize = 500;

/// A change of one set.
#[derive(Debug, Clone)]
pub enum Change<'a> {
    /// Add elements; those already there are fine.
    Add(&'a [Vec<u8>]),
    /// Delete elements, all of which must be there.
    Delete(&'a [Vec<u8>]),
    /// Make these the only elements.
    Replace(&'a [Vec<u8>]),
}

/// A nfnetlink socket. It belongs to the namespace in which it was opened.
pub struct SetSocket(Mutex<Inner>);

struct Inner {
    socket: Socket,
    sequence: u32,
}

impl std::fmt::Debug for SetSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SetSocket")
    }
}

impl SetSocket {
    /// A socket in the given network namespace.
    pub fn open_in(netns: BorrowedFd<'_>) -> io::Result<Self> {
        netns::run_in(netns, || {
            let socket = netlink::connect(NETLINK_NETFILTER)?;
            Ok(Self(Mutex::new(Inner { socket, sequence: 0 })))
        })
    }

    /// Changes set `set` of `inet` table `table`, wholly or not at all. A key is the set's type in
    /// bytes, each part padded to 4 bytes. `ENOENT` when table, set or an element to delete is
    /// missing.
    pub fn change(&self, table: &str, set: &str, change: &Change<'_>) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = Batch { bytes: Vec::new(), sequence: inner.sequence, acks: 0 };
        batch.boundary(NFNL_MSG_BATCH_BEGIN);
        match change {
            Change::Add(keys) => batch.elements(NFT_MSG_NEWSETELEM, table, set, keys),
            Change::Delete(keys) => batch.elements(NFT_MSG_DELSETELEM, table, set, keys),
            Change::Replace(keys) => {
                batch.flush(table, set);
                batch.elements(NFT_MSG_NEWSETELEM, table, set, keys);
            }
        }
        batch.boundary(NFNL_MSG_BATCH_END);
        inner.sequence = batch.sequence;
        inner.socket.send(&batch.bytes, 0)?;
        let mut buffer: Vec<u8> = Vec::with_capacity(16 * 1024);
        let mut acks = 0;
        while acks < batch.acks {
            buffer.clear();
            match inner.socket.recv(&mut buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            for code in answers(&buffer) {
                if code != 0 {
                    // How many answers a refused batch has depends on where it failed; all of
                    // them are queued by now, and none may be taken for the next batch's.
                    inner.discard_answers()?;
                    return Err(io::Error::from_raw_os_error(-code));
                }
                acks += 1;
            }
        }
        Ok(())
    }
}

impl Inner {
    fn discard_answers(&self) -> io::Result<()> {
        let mut buffer: Vec<u8> = Vec::with_capacity(16 * 1024);
        self.socket.set_non_blocking(true)?;
        while self.socket.recv(&mut buffer, 0).is_ok() {
            buffer.clear();
        }
        self.socket.set_non_blocking(false)
    }
}

/// The negative error number, or 0, of each acknowledgement in a datagram.
fn answers(mut bytes: &[u8]) -> Vec<i32> {
    let mut found = Vec::new();
    while let Some((header, _)) = bytes.split_first_chunk::<16>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if length < 16 || length > bytes.len() {
            break;
        }
        if let (NLMSG_ERROR, Some(code)) = (kind, bytes[16..length].first_chunk::<4>()) {
            found.push(i32::from_ne_bytes(*code));
        }
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    found
}

struct Batch {
    bytes: Vec<u8>,
    sequence: u32,
    acks: usize,
}

impl Batch {
    fn boundary(&mut self, kind: u16) {
        let start = self.begin(kind, NLM_F_REQUEST, NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES);
        self.end(start);
    }

    fn elements(&mut self, kind: u16, table: &str, set: &str, keys: &[Vec<u8>]) {
        for keys in keys.chunks(ELEMENTS_PER_MESSAGE) {
            let flags = NLM_F_REQUEST | NLM_F_ACK | if kind == NFT_MSG_NEWSETELEM { NLM_F_CREATE } else { 0 };
            let start = self.begin(kind, flags, NFPROTO_INET, 0);
            self.acks += 1;
            self.text(NFTA_SET_ELEM_LIST_TABLE, table);
            self.text(NFTA_SET_ELEM_LIST_SET, set);
            let list = self.open(NFTA_SET_ELEM_LIST_ELEMENTS);
            for key in keys {
                let element = self.open(NFTA_LIST_ELEM);
                let outer = self.open(NFTA_SET_ELEM_KEY);
                self.attribute(NFTA_DATA_VALUE, key);
                self.close(outer);
                self.close(element);
            }
            self.close(list);
            self.end(start);
        }
    }

    fn flush(&mut self, table: &str, set: &str) {
        let start = self.begin(NFT_MSG_DELSETELEM, NLM_F_REQUEST | NLM_F_ACK, NFPROTO_INET, 0);
        self.acks += 1;
        self.text(NFTA_SET_ELEM_LIST_TABLE, table);
        self.text(NFTA_SET_ELEM_LIST_SET, set);
        self.end(start);
    }

    /// Starts a message: netlink header (length filled in by `end`) and `nfgenmsg`.
    fn begin(&mut self, kind: u16, flags: u16, family: u8, resource: u16) -> usize {
        self.sequence = self.sequence.wrapping_add(1);
        let start = self.bytes.len();
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        start
    }

    fn end(&mut self, start: usize) {
        // A batch is some kilobytes: its length fits.
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend(0u16.to_ne_bytes());
        self.bytes.extend((kind | NLA_F_NESTED).to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        // Bounded by ELEMENTS_PER_MESSAGE and the size of a key.
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = (value.len() + 4) as u16;
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }
}
