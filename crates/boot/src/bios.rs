//! What a BIOS leaves in low memory besides ACPI's tables, for payloads that look: real-mode interrupt
//! vectors, two words of the BIOS data area, and the System Management BIOS tables (SMBIOS, DMTF
//! DSP0134 3.4).
//!
//! Not there: services. No firmware runs; a call of one returns at once with the carry flag set, which
//! is how a BIOS says that it cannot.

use crate::BootError;
use crate::fields::Table;
use mimeo_memory::GuestMemory;

/// BIOS data area: the extended BIOS data area's segment.
const BDA_EBDA: u64 = 0x40e;
/// BIOS data area: kilobytes of base memory.
const BDA_BASE_MEMORY: u64 = 0x413;
/// The extended BIOS data area ends base memory; its first byte is its size in kilobytes.
const EBDA: u64 = 0x9_fc00;

/// Where the vectors lead: F000:FF53 is the BIOS's own empty handler on PCs.
const HANDLERS: (u16, u16) = (0xf000, 0xff53);
/// IRET, for exceptions and hardware interrupts; then, at the next byte, for services: sets the carry
/// flag that the caller gets back (push bp; mov bp, sp; or byte [bp+6], 1; pop bp; iret).
const CODE: [u8; 10] = [0xcf, 0x55, 0x89, 0xe5, 0x80, 0x4e, 0x06, 0x01, 0x5d, 0xcf];

/// The entry points: anchors are looked for from F0000h on, every 16 bytes (5.2).
const ENTRY_32: u64 = 0xf_0000;
const ENTRY_64: u64 = 0xf_0020;
/// The structures.
const STRUCTURES: u64 = 0xf_0040;
/// Version 2.8, as far as these structures go.
const VERSION: [u8; 2] = [2, 8];
/// A day for the BIOS: kernels take its year for the age of the machine.
const DATE: &str = "01/01/2026";

/// Writes the vectors, the BIOS data area and the SMBIOS tables of a machine called `product`. The memory
/// map ([`crate::MemoryMap::pc`]) keeps kernels away from the latter two.
///
/// # Errors
/// There is no memory below 1 MB.
pub fn install(memory: &GuestMemory, product: &str) -> Result<(), BootError> {
    memory.write(BDA_EBDA, &((EBDA >> 4) as u16).to_le_bytes())?;
    memory.write(BDA_BASE_MEMORY, &((EBDA >> 10) as u16).to_le_bytes())?;
    memory.write(EBDA, &[1])?;
    let (segment, handler) = HANDLERS;
    for vector in 0..256u64 {
        let service = !matches!(vector, 0..0x10 | 0x70..0x78);
        let offset = handler + u16::from(service);
        let far = u32::from(segment) << 16 | u32::from(offset);
        memory.write(4 * vector, &far.to_le_bytes())?;
    }
    memory.write((u64::from(segment) << 4) + u64::from(handler), &CODE)?;
    let structures = structures(product);
    memory.write(STRUCTURES, &structures.bytes)?;
    memory.write(ENTRY_32, &structures.entry_32())?;
    memory.write(ENTRY_64, &structures.entry_64())?;
    Ok(())
}

/// The structure table as it grows.
#[derive(Default)]
struct Structures {
    bytes: Vec<u8>,
    count: u16,
    longest: usize,
}

impl Structures {
    /// Appends a structure: its formatted part, whose header is filled in here, and its strings (6.1).
    fn add(&mut self, kind: u8, mut formatted: Table, strings: &[&str]) {
        let len = formatted.0.len() as u8;
        formatted.0[..2].copy_from_slice(&[kind, len]);
        formatted.0[2..4].copy_from_slice(&self.count.to_le_bytes());
        let mut bytes = formatted.0;
        for s in strings {
            bytes.extend(s.bytes());
            bytes.push(0);
        }
        bytes.resize(bytes.len() + if strings.is_empty() { 2 } else { 1 }, 0);
        self.longest = self.longest.max(bytes.len());
        self.bytes.extend(bytes);
        self.count += 1;
    }

    /// The 32-bit entry point (5.2.1).
    fn entry_32(&self) -> Vec<u8> {
        let mut e = b"_SM_\0\x1f".to_vec();
        e.extend(VERSION);
        e.extend((self.longest as u16).to_le_bytes());
        e.extend([0; 6]);
        e.extend(b"_DMI_\0");
        e.extend((self.bytes.len() as u16).to_le_bytes());
        e.extend((STRUCTURES as u32).to_le_bytes());
        e.extend(self.count.to_le_bytes());
        e.push(VERSION[0] << 4 | VERSION[1]);
        e[21] = checksum(&e[16..]);
        e[4] = checksum(&e);
        e
    }

    /// The 64-bit entry point (5.2.2).
    fn entry_64(&self) -> Vec<u8> {
        let mut e = b"_SM3_\0\x18".to_vec();
        e.extend(VERSION);
        e.extend([0, 1, 0]);
        e.extend((self.bytes.len() as u32).to_le_bytes());
        e.extend(STRUCTURES.to_le_bytes());
        e[5] = checksum(&e);
        e
    }
}

/// The byte that makes the sum zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b))
}

/// BIOS information (7.1), system information (7.2), enclosure (7.4), end of table (7.45).
fn structures(product: &str) -> Structures {
    const NO_CHARACTERISTICS: u8 = 1 << 3;
    const ACPI: u8 = 1;
    const VIRTUAL_MACHINE: u8 = 1 << 4;
    const POWER_SWITCH: u8 = 6;
    const OTHER: u8 = 1;
    const UNKNOWN: u8 = 2;
    let mut s = Structures::default();

    let mut bios = Table::zeroed(0x18);
    bios.0[0x04] = 1; // vendor
    bios.0[0x05] = 2; // version
    bios.0[0x06..0x08].copy_from_slice(&0xe000u16.to_le_bytes());
    bios.0[0x08] = 3; // date
    bios.0[0x0a] = NO_CHARACTERISTICS;
    bios.0[0x12] = ACPI;
    bios.0[0x13] = VIRTUAL_MACHINE;
    bios.0[0x14..0x18].fill(0xff); // no releases
    s.add(0, bios, &["Mimeo", env!("CARGO_PKG_VERSION"), DATE]);

    let mut system = Table::zeroed(0x1b);
    system.0[0x04] = 1; // manufacturer
    system.0[0x05] = 2; // product
    system.0[0x06] = 3; // version; no serial number, and a UUID of zeros: none
    system.0[0x18] = POWER_SWITCH;
    s.add(1, system, &["Mimeo", product, env!("CARGO_PKG_VERSION")]);

    let mut enclosure = Table::zeroed(0x15);
    enclosure.0[0x04] = 1; // manufacturer
    enclosure.0[0x05] = OTHER;
    enclosure.0[0x09..0x0d].fill(UNKNOWN); // states of boot, power supply, temperature, security
    s.add(3, enclosure, &["Mimeo"]);

    s.add(127, Table::zeroed(4), &[]);
    s
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |s, b| s.wrapping_add(*b))
    }

    #[test]
    fn entry_points_lead_to_the_structures() {
        let memory = GuestMemory::ram(2 << 20).unwrap();
        install(&memory, "microvm").unwrap();
        let mut e = [0; 0x1f];
        memory.read(0xf_0000, &mut e).unwrap();
        assert_eq!((&e[..4], &e[16..21]), (&b"_SM_"[..], &b"_DMI_"[..]));
        assert_eq!((sum(&e), sum(&e[16..]), e[5]), (0, 0, 0x1f));
        let table = u32::from_le_bytes([e[24], e[25], e[26], e[27]]);
        let len = u16::from_le_bytes([e[22], e[23]]);
        let count = u16::from_le_bytes([e[28], e[29]]);
        let mut e3 = [0; 0x18];
        memory.read(0xf_0020, &mut e3).unwrap();
        assert_eq!((&e3[..5], sum(&e3)), (&b"_SM3_"[..], 0));

        // Walked as 6.1 says, the table ends with type 127 after `count` structures.
        let mut bytes = vec![0; usize::from(len)];
        memory.read(table.into(), &mut bytes).unwrap();
        let (mut at, mut seen) = (0, Vec::new());
        while at < bytes.len() {
            let (kind, formatted) = (bytes[at], usize::from(bytes[at + 1]));
            let strings = &bytes[at + formatted..];
            let end = strings.windows(2).position(|w| w == [0, 0]).unwrap();
            let text = String::from_utf8_lossy(&strings[..end]).into_owned();
            seen.push((kind, text.split('\0').count()));
            at += formatted + end + 2;
        }
        assert_eq!(at, bytes.len());
        assert_eq!(seen.len(), usize::from(count));
        assert_eq!(seen, [(0, 3), (1, 3), (3, 1), (127, 1)]);
    }

    #[test]
    fn base_memory_ends_where_the_memory_map_says() {
        let memory = GuestMemory::ram(2 << 20).unwrap();
        install(&memory, "microvm").unwrap();
        let word = |at| memory.read_u32(at).unwrap() as u16;
        let map = crate::MemoryMap::pc(&memory);
        assert_eq!(u64::from(word(0x40e)) << 4, map.ram_below_1mb());
        assert_eq!(u64::from(word(0x413)) << 10, map.ram_below_1mb());
    }
}
