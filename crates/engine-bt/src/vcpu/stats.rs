//! Counters.

use super::BtVcpu;
use std::collections::HashMap;

/// Counters of a vCPU.
#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) enters: u64,
    pub(super) misses: u64,
    pub(super) interp: u64,
    pub(super) links: u64,
    pub(super) indirect: u64,
    pub(super) far: u64,
    pub(super) kicks: u64,
    pub(super) faults: u64,
    pub(super) singles: u64,
    /// Interpreter steps from translated code, by form.
    pub(super) fallbacks: HashMap<u16, u64>,
}

impl BtVcpu {
    /// The forms most often left to the interpreter.
    fn fallbacks(&self) -> Vec<(String, u64)> {
        let mut list: Vec<_> = self.stats.fallbacks.iter().collect();
        list.sort_by_key(|(code, n)| (std::cmp::Reverse(**n), **code));
        list.iter()
            .take(24)
            .filter_map(|(code, n)| {
                let code = iced_x86::Code::try_from(usize::from(**code)).ok()?;
                Some((format!("fallback {code:?}"), **n))
            })
            .collect()
    }

    /// What `--stats` shows of this vCPU.
    pub(super) fn counters(&self) -> Vec<(String, u64)> {
        let (v, m, t) = (&self.stats, &self.mmu.stats, self.shared.stats());
        let (blocks, insns, sites) = self.shared.index.counts();
        [
            ("blocks translated", t.blocks),
            ("guest instructions translated", t.insns),
            ("guest bytes translated", t.guest_bytes),
            ("host bytes, hot", t.host_bytes),
            ("host bytes, cold", t.cold_bytes),
            ("instructions left to the interpreter", t.interp_insns),
            ("blocks in the cache", blocks),
            ("instructions in the cache", insns),
            ("exit sites", sites),
            ("branches chained", t.links),
            ("page invalidations", t.invalidations),
            ("instructions with misaligned operands", t.misaligned),
            ("code cache drops", t.drops),
            ("entries into translated code", v.enters),
            ("exits: table miss", v.misses),
            ("exits: unchained branch", v.links),
            ("exits: indirect branch", v.indirect),
            ("exits: far branch", v.far),
            ("exits: kicked", v.kicks),
            ("exits: host fault", v.faults),
            ("interpreter steps", v.interp),
            ("of these outside blocks", v.singles),
            ("table fills", m.fills),
            ("table flushes", m.flushes),
            ("page flushes", m.page_flushes),
            ("address space switches", m.switches),
            ("view evictions", m.view_evictions),
            ("table memory, KB", self.mmu.table_pages() * 4),
            ("table mappings, all vCPUs", crate::lazy::mappings() as u64),
            (
                "host bytes for 100 guest bytes",
                (t.host_bytes + t.cold_bytes) * 100 / t.guest_bytes.max(1),
            ),
        ]
        .map(|(name, n)| (name.to_owned(), n))
        .into_iter()
        .chain(self.fallbacks())
        .collect()
    }
}
