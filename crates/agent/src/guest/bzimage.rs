//! The ELF `vmlinux` in a bzImage, at the place that the setup header names (Linux,
//! Documentation/arch/x86/boot.rst, `payload_offset` and `payload_length`, protocol 2.08).

use std::io::Read;

use super::decompress::decompress;

/// The longest kernel, unpacked, in bytes.
const VMLINUX_MAX: u64 = 512 << 20;
const SECTOR: usize = 512;

fn u32_at(image: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(image.get(offset..offset + 4)?.try_into().ok()?))
}

/// The kernel inside; an ELF file is given back as it is.
///
/// # Errors
/// The image is not one, its compression is not known, or it is damaged; why.
pub(super) fn vmlinux(image: Vec<u8>) -> Result<Vec<u8>, String> {
    if is_kernel(&image) {
        return Ok(image);
    }
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err("it is neither a bzImage nor an ELF file".into());
    }
    let payload = payload(&image).ok_or("the bzImage's header points outside of it")?;
    let mut kernel = Vec::new();
    let length = decompress(payload)
        .and_then(|mut reader| reader.by_ref().take(VMLINUX_MAX + 1).read_to_end(&mut kernel))
        .map_err(|error| format!("the kernel in the bzImage cannot be unpacked: {error}"))?;
    if length as u64 > VMLINUX_MAX {
        return Err(format!("the kernel is larger than {} MiB", VMLINUX_MAX >> 20));
    }
    if !is_kernel(&kernel) {
        return Err(
            "what the bzImage holds is not an x86-64 ELF file (its compression may be LZMA, LZO or bzip2, \
                    which are not known here)"
                .into(),
        );
    }
    Ok(kernel)
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let sectors = match *image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = ((sectors + 1) * SECTOR).checked_add(u32_at(image, 0x248)? as usize)?;
    let payload = image.get(start..start.checked_add(u32_at(image, 0x24c)? as usize)?)?;
    // Where the compressed format does not say its unpacked length, four bytes behind it do; gzip's
    // own last field is that length (Linux, scripts/Makefile.lib, size_append).
    if payload.starts_with(b"\x1f\x8b") {
        Some(payload)
    } else {
        payload.get(..payload.len().checked_sub(4)?)
    }
}

/// Whether it is an executable ELF file for x86-64.
fn is_kernel(file: &[u8]) -> bool {
    const ELF64_LITTLE_ENDIAN: &[u8] = b"\x7fELF\x02\x01";
    const EM_X86_64: [u8; 2] = [62, 0];
    file.starts_with(ELF64_LITTLE_ENDIAN) && file.get(18..20) == Some(&EM_X86_64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf() -> Vec<u8> {
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(18, 0);
        elf.extend([62, 0]);
        elf.resize(5000, 7);
        elf
    }

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * SECTOR];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend([0; 16]);
        image.extend(payload);
        image
    }

    #[test]
    fn the_kernel_is_found_and_unpacked() {
        let mut payload = zstd::encode_all(&elf()[..], 1).unwrap();
        payload.extend(5000_u32.to_le_bytes());
        assert!(vmlinux(bzimage(&payload)).unwrap() == elf());
        assert!(vmlinux(elf()).unwrap() == elf());
    }

    #[test]
    fn what_is_none_is_refused() {
        assert!(vmlinux(Vec::new()).unwrap_err().contains("neither"));
        assert!(vmlinux(vec![0; 4096]).unwrap_err().contains("neither"));
        assert!(vmlinux(bzimage(b"something else")).unwrap_err().contains("not an x86-64 ELF"));
        let mut image = bzimage(b"1234567");
        image.pop();
        assert!(vmlinux(image).unwrap_err().contains("outside"));
        let mut image = bzimage(b"");
        image[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(vmlinux(image).unwrap_err().contains("outside"));
        let mut other = elf();
        other[18] = 183; // AArch64
        assert!(vmlinux(other).is_err());
    }
}
