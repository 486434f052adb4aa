//! Linux's bzImage: the setup header and where the kernel goes.
//!
//! Source: Documentation/arch/x86/boot.rst of Linux ("The Real-Mode Kernel Header", "Memory
//! layout", "32-bit boot protocol", "64-bit boot protocol"). Not done: the 16-bit entry, which
//! calls a BIOS (protocols before 2.02), and EFI's handover entry.

use crate::Rejection;
use crate::fields::{u8_at, u16_at, u32_at, u64_at};
use std::ops::Range;

/// Where the setup header stands in the file and in the zero page.
pub(crate) const HEADER: usize = 0x1f1;
/// The zero page has room for the header up to here (`struct boot_params`: edd_mbr_sig_buffer).
const HEADER_END: usize = 0x290;

const CODE32_START: usize = 0x214;
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;

/// What the loader needs of the setup header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BzImage {
    /// Boot protocol version, e.g. 0x20f for 2.15.
    pub version: u16,
    /// The kernel's own version string, empty when it has none.
    pub release: String,
    /// Bytes of the header, to be copied into the zero page at 0x1f1.
    pub(crate) header: Vec<u8>,
    /// The protected-mode part in the file.
    pub(crate) code: Range<usize>,
    /// Loaded at 1 MB or above (not a zImage).
    pub(crate) high: bool,
    /// There is a 64-bit entry at 0x200.
    pub(crate) entry64: bool,
    /// Everything may stand above 4 GB.
    pub(crate) above_4g: bool,
    /// The address that the kernel wants to run at.
    pub(crate) pref_address: u64,
    /// Bytes of contiguous memory that it needs there.
    pub(crate) init_size: u64,
    /// The highest address that an initial RAM disk may occupy.
    pub(crate) initrd_max: u64,
    /// The most bytes of command line, without the NUL.
    pub(crate) cmdline_max: usize,
}

/// Whether this is a bzImage (or zImage), at all.
pub(crate) fn is_bzimage(data: &[u8]) -> bool {
    u16_at(data, 0x1fe) == Some(0xaa55) && data.get(0x202..0x206) == Some(b"HdrS")
}

/// Reads the setup header.
///
/// # Errors
/// [`Rejection`] when the file is cut off, too old, or contradicts itself.
pub(crate) fn parse(data: &[u8]) -> Result<BzImage, Rejection> {
    let have = data.len() as u64;
    let short = Rejection::Truncated {
        what: "setup header",
        needed: 0x268,
        have,
    };
    let field8 = |at| u8_at(data, at).ok_or_else(|| short.clone());
    let field16 = |at| u16_at(data, at).ok_or_else(|| short.clone());
    let field32 = |at| u32_at(data, at).ok_or_else(|| short.clone());
    let version = field16(0x206)?;
    if version < 0x202 {
        return Err(Rejection::Unsupported {
            what: format!(
                "its boot protocol {}.{:02} is older than 2.02 and needs a BIOS",
                version >> 8,
                version & 0xff
            ),
            remedy: "use Linux 2.4 or later",
        });
    }
    let since = |v| version >= v;
    let sectors = match field8(HEADER)? {
        0 => 4,
        n => usize::from(n),
    };
    let start = (sectors + 1) * 512;
    let paragraphs = if since(0x204) {
        field32(0x1f4)?
    } else {
        u32::from(field16(0x1f4)?)
    };
    // The kernel's build rounds the size up to a paragraph, the file need not be that long.
    let size = u64::from(paragraphs) * 16;
    let needed = (start as u64 + size).saturating_sub(15);
    if size == 0 {
        return Err(Rejection::Malformed(
            "its setup header says that the kernel is empty".into(),
        ));
    }
    if have < needed {
        return Err(Rejection::Truncated {
            what: "kernel",
            needed,
            have,
        });
    }
    let end = usize::try_from(start as u64 + size)
        .unwrap_or(usize::MAX)
        .min(data.len());
    let high = field8(0x211)? & LOADED_HIGH != 0;
    let default_address = if high { 0x10_0000 } else { 0x1_0000 };
    let (pref_address, init_size) = if since(0x20a) {
        let pref = u64_at(data, 0x258).ok_or_else(|| short.clone())?;
        (pref, u64::from(field32(0x260)?).max(size))
    } else {
        // Before 2.10 the header does not tell; four times the compressed size and a megabyte
        // has room for those kernels and their page tables.
        (default_address, size * 4 + (1 << 20))
    };
    let xloadflags = if since(0x20c) { field16(0x236)? } else { 0 };
    if field32(CODE32_START)? == 0 && xloadflags & XLF_KERNEL_64 == 0 {
        return Err(Rejection::Unsupported {
            what: "it has only the 16-bit entry, whose code calls a BIOS, and no BIOS runs here"
                .into(),
            remedy: "use a build of it that is a Linux kernel inside, a Multiboot or a PVH kernel",
        });
    }
    let header_len = 0x202 + usize::from(field8(0x201)?);
    let header = data
        .get(HEADER..header_len.min(HEADER_END))
        .ok_or_else(|| short.clone())?;
    Ok(BzImage {
        version,
        release: release(data),
        header: header.to_vec(),
        code: start..end,
        high,
        entry64: xloadflags & XLF_KERNEL_64 != 0,
        above_4g: xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0,
        pref_address,
        init_size,
        initrd_max: if since(0x203) {
            u64::from(field32(0x22c)?)
        } else {
            0x37ff_ffff
        },
        cmdline_max: if since(0x206) {
            field32(0x238)? as usize
        } else {
            255
        },
    })
}

/// The version string that `kernel_version` points to (offset less 0x200), cut at a sane length.
fn release(data: &[u8]) -> String {
    let bytes = u16_at(data, 0x20e)
        .filter(|&p| p != 0)
        .and_then(|p| data.get(usize::from(p) + 0x200..))
        .unwrap_or_default();
    let text = bytes
        .iter()
        .take(200)
        .take_while(|&&b| (0x20..0x7f).contains(&b));
    text.map(|&b| char::from(b)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A bzImage of protocol 2.15 whose kernel is `size` bytes of 0x90.
    pub(crate) fn synthetic(size: usize) -> Vec<u8> {
        let mut d = vec![0; 1024];
        d[0x1f1] = 1;
        d[0x1f4..0x1f8].copy_from_slice(&(size.div_ceil(16) as u32).to_le_bytes());
        d[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        d[0x200..0x202].copy_from_slice(&[0xeb, 0x6a]);
        d[0x202..0x206].copy_from_slice(b"HdrS");
        d[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        d[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        d[0x211] = 1;
        d[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
        d[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        d[0x230..0x234].copy_from_slice(&0x20_0000_u32.to_le_bytes());
        d[0x234] = 1;
        d[0x236..0x238].copy_from_slice(&3_u16.to_le_bytes());
        d[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
        d[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
        d[0x260..0x264].copy_from_slice(&0x40_0000_u32.to_le_bytes());
        d[0x300..0x306].copy_from_slice(b"6.1-xy");
        d.resize(1024 + size, 0x90);
        d
    }

    #[test]
    fn a_good_header() {
        let k = parse(&synthetic(1000)).unwrap();
        assert_eq!((k.version, k.release.as_str()), (0x20f, "6.1-xy"));
        assert_eq!(k.code, 1024..2024);
        assert!(k.entry64 && k.above_4g && k.high);
        assert_eq!((k.pref_address, k.init_size), (0x100_0000, 0x40_0000));
        assert_eq!(k.header.len(), 0x26c - 0x1f1);
    }

    #[test]
    fn cut_anywhere_it_is_refused() {
        let whole = synthetic(1600);
        for len in 0x206..whole.len() - 15 {
            let e = parse(&whole[..len]).unwrap_err();
            assert!(matches!(e, Rejection::Truncated { .. }), "{len}: {e}");
        }
        assert!(parse(&whole).is_ok());
    }

    #[test]
    fn old_protocols() {
        let mut d = synthetic(1600);
        d[0x206..0x208].copy_from_slice(&0x201_u16.to_le_bytes());
        assert!(parse(&d).unwrap_err().to_string().contains("2.01"));
        d[0x206..0x208].copy_from_slice(&0x203_u16.to_le_bytes());
        let k = parse(&d).unwrap();
        assert_eq!(
            (k.entry64, k.cmdline_max, k.pref_address),
            (false, 255, 0x10_0000)
        );
        d[0x211] = 0;
        assert_eq!(parse(&d).unwrap().pref_address, 0x1_0000);
        // As iPXE's image has it.
        d[CODE32_START..CODE32_START + 4].fill(0);
        assert!(parse(&d).unwrap_err().to_string().contains("16-bit entry"));
    }
}
