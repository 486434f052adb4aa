//! The x87 state as memory formats show it: TOP and tags (SDM vol. 1, 8.1).

use mimeo_arch_x86::state::FpState;

/// Error summary: an unmasked exception is pending.
pub(super) const ES: u16 = 1 << 7;
/// Busy: a copy of ES.
pub(super) const BUSY: u16 = 1 << 15;
const TOP: u16 = 7 << 11;
/// The low ten bytes: an x87 register.
pub(super) const REGISTER: u128 = (1 << 80) - 1;

/// Changes TOP; the physical registers keep their contents.
pub(super) fn set_top(fp: &mut FpState, top: u8) {
    let old = (fp.fsw >> 11) as u8 & 7;
    fp.st.rotate_left(usize::from(top.wrapping_sub(old) & 7));
    fp.fsw = fp.fsw & !TOP | u16::from(top & 7) << 11;
}

/// Loads the status word (TOP moves), ES and B following from the flags and the control word.
pub(super) fn set_status(fp: &mut FpState, fsw: u16) {
    set_top(fp, (fsw >> 11) as u8 & 7);
    fp.fsw = fsw;
    summarise(fp);
}

/// Recomputes ES and B after a change of flags or masks.
pub(super) fn summarise(fp: &mut FpState) {
    if fp.fsw & !fp.fcw & 0x3f != 0 {
        fp.fsw |= ES | BUSY;
    } else {
        fp.fsw &= !(ES | BUSY);
    }
}

/// Loads the control word: bit 6 reads as one, bits 7 and 13 to 15 as zero.
pub(super) fn set_control(fp: &mut FpState, fcw: u16) {
    fp.fcw = fcw & 0x1f7f | 0x40;
    summarise(fp);
}

/// FNINIT (SDM vol. 2, FINIT); the registers keep their contents.
pub(super) fn initialise(fp: &mut FpState) {
    set_top(fp, 0);
    fp.fcw = 0x37f;
    fp.fsw = 0;
    fp.ftw = 0;
    fp.fop = 0;
    fp.fip = 0;
    fp.fdp = 0;
    fp.fcs = 0;
    fp.fds = 0;
}

/// The full tag word (two bits a physical register) from the abridged one and the contents.
pub(super) fn full_tags(fp: &FpState) -> u16 {
    let top = fp.fsw >> 11 & 7;
    (0..8).fold(0, |tags, physical: u16| {
        let tag = if fp.ftw & 1 << physical == 0 {
            3
        } else {
            class(fp.st[usize::from(physical.wrapping_sub(top) & 7)])
        };
        tags | tag << (2 * physical)
    })
}

/// Valid (0), zero (1) or special (2): NaN, infinity, denormal, unsupported.
fn class(register: u128) -> u16 {
    let mantissa = register as u64;
    match (register >> 64) as u16 & 0x7fff {
        0 if mantissa == 0 => 1,
        0 | 0x7fff => 2,
        _ if mantissa >> 63 == 0 => 2,
        _ => 0,
    }
}

/// The abridged tag byte of a full tag word.
pub(super) fn abridged(tags: u16) -> u8 {
    (0..8).fold(0, |byte, n| {
        if tags >> (2 * n) & 3 == 3 {
            byte
        } else {
            byte | 1 << n
        }
    })
}

/// A little-endian 16-bit field; `bytes` is one of the fixed-size areas of this group.
pub(super) fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// A little-endian 32-bit field.
pub(super) fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from(get16(bytes, at)) | u32::from(get16(bytes, at + 2)) << 16
}

/// A little-endian 64-bit field.
pub(super) fn get64(bytes: &[u8], at: usize) -> u64 {
    u64::from(get32(bytes, at)) | u64::from(get32(bytes, at + 4)) << 32
}

/// Writes a field of any width.
pub(super) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}
