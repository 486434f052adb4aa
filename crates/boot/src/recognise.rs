//! What a file is that is not a kernel for this machine, told from its first bytes, so that the
//! message can say it (magic numbers: file(1)'s public knowledge, ELF gABI 4.3, PE/COFF 3,
//! Documentation/arch/{arm64,riscv}/boot*.rst).

use crate::Rejection;
use crate::fields::{u16_at, u32_at};

const UNPACK: &str = "unpack it first, or give it to --initrd if it is an initial RAM disk";
const GIVE_KERNEL: &str =
    "give --kernel a bzImage, an ELF vmlinux or a Multiboot kernel (/boot/vmlinuz-* is one)";
const AS_INITRD: &str = "give it to --initrd, and a kernel to --kernel";
const AS_DISK: &str =
    "Mimeo starts kernels directly; take the kernel (vmlinuz) out of it and give that to --kernel";

/// First bytes, their place, what they say, and what to do.
const MAGICS: &[(usize, &[u8], &str, &str)] = &[
    (0, b"\x1f\x8b", "a gzip-compressed file", UNPACK),
    (0, b"\xfd7zXZ\0", "an xz-compressed file", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstd-compressed file", UNPACK),
    (0, b"BZh", "a bzip2-compressed file", UNPACK),
    (0, b"\x02\x21\x4c\x18", "an lz4-compressed file", UNPACK),
    (0, b"\x04\x22\x4d\x18", "an lz4-compressed file", UNPACK),
    (0, b"070701", "a cpio archive (an initramfs)", AS_INITRD),
    (0, b"070702", "a cpio archive (an initramfs)", AS_INITRD),
    (0, b"QFI\xfb", "a qcow2 disk image", AS_DISK),
    (0, b"KDMV", "a VMDK disk image", AS_DISK),
    (0x8001, b"CD001", "a CD-ROM image", AS_DISK),
    (0, b"!<arch>\n", "a package or library (ar archive)", UNPACK),
    (0, b"PK\x03\x04", "a zip archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
    (0, b"#!", "a script", GIVE_KERNEL),
    (0x1fe, b"\x55\xaa", "a disk image or boot sector", AS_DISK),
];

/// ELF machine numbers (gABI) that a person may meet.
const MACHINES: &[(u16, &str)] = &[
    (2, "SPARC"),
    (4, "Motorola 68000"),
    (8, "MIPS"),
    (15, "PA-RISC"),
    (20, "32-bit PowerPC"),
    (21, "64-bit PowerPC"),
    (22, "IBM Z (s390)"),
    (40, "32-bit ARM"),
    (42, "SuperH"),
    (43, "SPARC V9"),
    (50, "Itanium"),
    (94, "Xtensa"),
    (164, "Hexagon"),
    (183, "64-bit ARM (aarch64)"),
    (195, "ARC"),
    (243, "RISC-V"),
    (247, "BPF"),
    (252, "C-SKY"),
    (258, "LoongArch"),
];

/// The name of an ELF machine other than x86.
pub(crate) fn machine_name(machine: u16) -> String {
    MACHINES.iter().find(|(m, _)| *m == machine).map_or_else(
        || format!("ELF machine {machine}"),
        |(_, n)| (*n).to_owned(),
    )
}

/// The processor of a PE/COFF image (PE/COFF 3.3.1), when it is not x86.
fn pe_machine(data: &[u8]) -> Option<&'static str> {
    let header = u32_at(data, 0x3c)? as usize;
    if u32_at(data, header)? != 0x0000_4550 {
        return None;
    }
    match u16_at(data, header.checked_add(4)?)? {
        0xaa64 => Some("64-bit ARM (aarch64)"),
        0x01c0 | 0x01c2 | 0x01c4 => Some("32-bit ARM"),
        0x5032 | 0x5064 => Some("RISC-V"),
        0x6232 | 0x6264 => Some("LoongArch"),
        0x0200 => Some("Itanium"),
        _ => None,
    }
}

/// Kernels of other processors that are no ELF files: (offset, magic, processor).
const FOREIGN: &[(usize, &[u8], &str)] = &[
    (0x38, b"ARMd", "64-bit ARM (aarch64)"),
    (0x38, b"RSC\x05", "RISC-V"),
    (0x24, b"\x18\x28\x6f\x01", "32-bit ARM"),
];

fn has(data: &[u8], offset: usize, magic: &[u8]) -> bool {
    data.get(offset..).is_some_and(|d| d.starts_with(magic))
}

/// Why `data`, which is none of the kernels that Mimeo starts, is not one.
pub(crate) fn rejection(data: &[u8]) -> Rejection {
    if let Some((.., arch)) = FOREIGN.iter().find(|(at, m, _)| has(data, *at, m)) {
        return Rejection::OtherArchitecture((*arch).to_owned());
    }
    let not = |what, remedy| Rejection::NotAKernel { what, remedy };
    if data.is_empty() {
        return not("an empty file", GIVE_KERNEL);
    }
    if has(data, 0, b"MZ") {
        return match pe_machine(data) {
            Some(arch) => Rejection::OtherArchitecture(arch.to_owned()),
            None => not("an EFI or Windows program", GIVE_KERNEL),
        };
    }
    if let Some((.., what, remedy)) = MAGICS.iter().find(|(at, m, ..)| has(data, *at, m)) {
        return not(what, remedy);
    }
    if data.len() < 1024 && b"\x7fELF".starts_with(&data[..data.len().min(4)]) {
        return Rejection::Truncated {
            what: "header",
            needed: 64,
            have: data.len() as u64,
        };
    }
    if data[..data.len().min(512)].iter().all(|&b| b == 0) {
        return not("a file that begins with zeros", GIVE_KERNEL);
    }
    let text = |b: &u8| matches!(b, b'\t' | b'\n' | b'\r' | 0x20..=0x7e);
    if data[..data.len().min(512)].iter().all(text) {
        return not("a text file", GIVE_KERNEL);
    }
    not("something unknown", GIVE_KERNEL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(data: &[u8]) -> String {
        rejection(data).to_string()
    }

    #[test]
    fn says_what_the_file_is() {
        assert!(sentence(b"").contains("an empty file"));
        assert!(sentence(b"\x1f\x8b\x08\0").contains("gzip"));
        assert!(sentence(b"070701000").contains("--initrd"));
        assert!(sentence(b"hello\n").contains("text file"));
        assert!(sentence(&[0; 600]).contains("zeros"));
        assert!(sentence(b"\x7fE").contains("truncated"));
        assert!(sentence(&[1, 2, 3, 255]).contains("unknown"));
    }

    #[test]
    fn foreign_kernels_are_named() {
        let mut image = vec![0; 0x100];
        image[0x38..0x3c].copy_from_slice(b"ARMd");
        assert!(sentence(&image).contains("is for 64-bit ARM"));
        let mut pe = vec![0; 0x100];
        pe[..2].copy_from_slice(b"MZ");
        pe[0x3c] = 0x80;
        pe[0x80..0x86].copy_from_slice(b"PE\0\0\x64\x50");
        assert!(sentence(&pe).contains("RISC-V"));
        pe[0x84..0x86].copy_from_slice(b"\x64\x86");
        assert!(sentence(&pe).contains("EFI or Windows"));
        pe[0x3f] = 0xff;
        assert!(sentence(&pe).contains("EFI or Windows"));
        assert_eq!(machine_name(183), "64-bit ARM (aarch64)");
        assert_eq!(machine_name(9999), "ELF machine 9999");
    }
}
