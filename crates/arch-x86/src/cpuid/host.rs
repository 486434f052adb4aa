//! What a host can serve.

use super::feature::{Feature, FeatureSet};
use super::model::Vendor;

/// The host's CPU, as far as a model depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCpu {
    /// The vendor (a maker of compatible CPUs counts as the one whose leaves it follows).
    pub vendor: Vendor,
    /// CPUID.1:EAX: family, model and stepping.
    pub signature: u32,
    /// The brand string, without padding.
    pub brand: String,
    /// Features that it has and that its kernel lets processes use.
    pub features: FeatureSet,
    /// Physical address bits, 32 to 52.
    pub physical_bits: u32,
    /// FDP is saved only when an x87 exception is unmasked (CPUID.7.0:EBX bit 6).
    pub fdp_excptn_only: bool,
    /// FCS and FDS are saved as zero (CPUID.7.0:EBX bit 13).
    pub zero_fcs_fds: bool,
}

impl HostCpu {
    /// Reads a CPU through `cpuid`, which executes the instruction with (leaf, subleaf). `xcr0` is
    /// the value of XGETBV(0), or 0 where CR4.OSXSAVE is clear (CPUID.1:ECX bit 27).
    #[must_use]
    pub fn from_cpuid(cpuid: impl Fn(u32, u32) -> [u32; 4], xcr0: u64) -> Self {
        let [max, b, c, d] = cpuid(0, 0);
        let ext_max = cpuid(0x8000_0000, 0)[0];
        // Intel CPUs answer an unknown leaf with the last basic one's data: look at the maximum.
        let read = |leaf: u32, subleaf| {
            let top = if leaf >= 0x8000_0000 { ext_max } else { max };
            if leaf <= top {
                cpuid(leaf, subleaf)
            } else {
                [0; 4]
            }
        };
        let mut id = [0; 12];
        for (bytes, word) in id.chunks_exact_mut(4).zip([b, d, c]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let vendor = match &id {
            b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
            _ => Vendor::Intel,
        };
        let mut features = FeatureSet::default();
        for &f in Feature::ALL {
            let bit = f.bit();
            let hypervisor = (0x4000_0000..0x5000_0000).contains(&bit.leaf);
            if !hypervisor && read(bit.leaf, bit.subleaf)[bit.reg as usize] >> bit.bit & 1 != 0 {
                features.insert(f);
            }
        }
        if xcr0 & 3 != 3 {
            features.remove(Feature::Xsave);
        }
        if xcr0 & 7 != 7 {
            features.remove(Feature::Avx);
        }
        close(&mut features);
        let seven = read(7, 0)[1];
        let brand: Vec<u8> = (0x8000_0002..=0x8000_0004)
            .flat_map(|leaf| read(leaf, 0))
            .flat_map(u32::to_le_bytes)
            .take_while(|b| *b != 0)
            .collect();
        Self {
            vendor,
            signature: read(1, 0)[0],
            brand: String::from_utf8_lossy(&brand).trim().to_owned(),
            features,
            physical_bits: (read(0x8000_0008, 0)[0] & 0xff).clamp(32, 52),
            fdp_excptn_only: seven & (1 << 6) != 0,
            zero_fcs_fds: seven & (1 << 13) != 0,
        }
    }
}

/// Takes out features whose prerequisites are missing; gives (feature, what it needs) of each.
pub(super) fn close(set: &mut FeatureSet) -> Vec<(Feature, Feature)> {
    let mut out = Vec::new();
    loop {
        let lacking = set.iter().find_map(|f| {
            let need = f.needs().iter().find(|n| !set.has(**n))?;
            Some((f, *need))
        });
        let Some((f, need)) = lacking else {
            return out;
        };
        set.remove(f);
        out.push((f, need));
    }
}
