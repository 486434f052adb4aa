//! What every protocol hands to a kernel: its command line, its initial RAM disks or modules.

use crate::fields::Table;
use crate::memory_map::Placer;
use crate::options::{BootOptions, megabytes};
use crate::{BootError, cpu};
use mimeo_memory::GuestMemory;
use std::ops::Range;

const PAGE: u64 = 4096;
const FOUR_GB: u64 = 1 << 32;

/// Limits that a Linux kernel puts on what it is given.
#[derive(Debug)]
pub(crate) struct Limits {
    /// The highest address that an initial RAM disk may occupy.
    pub(crate) initrd_max: u64,
    /// It may stand above 4 GB as well.
    pub(crate) above_4g: bool,
    /// Bytes of command line without the NUL.
    pub(crate) cmdline_max: usize,
}

/// Puts a string and a NUL into base memory and gives its address.
pub(crate) fn put_string(
    mem: &GuestMemory,
    at: &mut Placer,
    text: &[u8],
) -> Result<u64, BootError> {
    if text.contains(&0) {
        return Err(BootError::CommandLineNul);
    }
    let len = text.len() as u64 + 1;
    let place = at.low(len, 16, cpu::LOW);
    let gpa = place.ok_or(BootError::NoRoom("the command line"))?;
    mem.write(gpa, text)?;
    mem.write(gpa + len - 1, &[0])?;
    Ok(gpa)
}

/// Puts the command line, of at most `max` bytes, and gives its address.
pub(crate) fn put_cmdline(
    mem: &GuestMemory,
    at: &mut Placer,
    name: &str,
    max: usize,
    opts: &BootOptions,
) -> Result<u64, BootError> {
    // The area below 640 KB bounds it whatever a header says.
    let (len, max) = (opts.cmdline.len(), max.min(0xffff));
    if len > max {
        let name = name.to_owned();
        return Err(BootError::CommandLineTooLong { name, len, max });
    }
    put_string(mem, at, opts.cmdline.as_bytes())
}

/// Copies all initial RAM disks, one after the other, each at a multiple of four bytes as cpio
/// archives want it (early-userspace/buffer-format.rst), as high as the kernel allows.
pub(crate) fn put_initrds(
    mem: &GuestMemory,
    at: &mut Placer,
    limits: &Limits,
    opts: &BootOptions,
) -> Result<Option<Range<u64>>, BootError> {
    let total = opts.initrd_bytes();
    let Some(first) = opts.initrds.first().filter(|_| total > 0) else {
        return Ok(None);
    };
    if !limits.above_4g && total > limits.initrd_max {
        let (size, limit) = (megabytes(total), limits.initrd_max >> 20);
        let name = first.name().to_owned();
        return Err(BootError::InitrdTooLarge { name, size, limit });
    }
    let below = 0x10_0000..limits.initrd_max.saturating_add(1).min(FOUR_GB);
    let place = at.high(total, PAGE, below).or_else(|| {
        let above = FOUR_GB..u64::MAX;
        limits
            .above_4g
            .then(|| at.high(total, PAGE, above))
            .flatten()
    });
    let start = place.ok_or_else(|| opts.initrd_does_not_fit(first))?;
    let mut end = start;
    for initrd in &opts.initrds {
        let next = end.next_multiple_of(4);
        for gap in end..next {
            mem.write(gap, &[0])?;
        }
        initrd.copy_to(mem, next)?;
        end = next + initrd.size();
    }
    Ok(Some(start..end))
}

/// Copies each module to a page of its own, above `above` and below 4 GB, lowest first.
pub(crate) fn put_modules(
    mem: &GuestMemory,
    at: &mut Placer,
    above: u64,
    opts: &BootOptions,
) -> Result<Vec<Range<u64>>, BootError> {
    let mut places = Vec::with_capacity(opts.initrds.len());
    for module in &opts.initrds {
        // An empty module still has an address of its own.
        let len = module.size().max(1);
        let place = at.low(len, PAGE, above.max(0x10_0000)..FOUR_GB);
        let start = place.ok_or_else(|| opts.initrd_does_not_fit(module))?;
        module.copy_to(mem, start)?;
        places.push(start..start + module.size());
    }
    Ok(places)
}

/// Puts a table into base memory.
pub(crate) fn put_table(
    mem: &GuestMemory,
    at: &mut Placer,
    table: &Table,
    what: &'static str,
) -> Result<u64, BootError> {
    let place = at.low(table.0.len() as u64, 16, cpu::LOW);
    let gpa = place.ok_or(BootError::NoRoom(what))?;
    mem.write(gpa, &table.0)?;
    Ok(gpa)
}

/// Zeroes `gpa..end`.
pub(crate) fn put_zeros(mem: &GuestMemory, mut gpa: u64, end: u64) -> Result<(), BootError> {
    let zeros = [0u8; 4096];
    while gpa < end {
        let n = (end - gpa).min(4096);
        mem.write(gpa, &zeros[..n as usize])?;
        gpa += n;
    }
    Ok(())
}
