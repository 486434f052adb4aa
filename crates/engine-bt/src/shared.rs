//! What the vCPUs of one VM share: the code cache, the translator and its lock, invalidation.
//!
//! Lock order: `translator`, then a vCPU's `purge`. The translator's lock is never held while guest
//! instructions execute or a callback of the machine runs; it may be held while waiting for another
//! vCPU to leave translated code, which takes no lock.
//!
//! Self- and cross-modifying code (ENGINE-REVIEW F6, F16): translated pages are marked in the page
//! tracker *before* their bytes are read for good; write words of such pages are revoked and every
//! other vCPU that may hold one in a register leaves translated code before the read. A later store
//! takes the cold path, where the interpreter makes it and the tracker calls
//! [`CodeWriteHook::code_written`].

use crate::ctx::{RL_BIAS, at};
use crate::decode::{self, Mode};
use crate::emit::Asm;
use crate::engine::BtOptions;
use crate::explain::Shown;
use crate::hash::IntMap;
use crate::index::Index;
use crate::lazy::LazyArray;
use crate::lower::{self, Emitted, Layout, Options};
use crate::peer::Peer;
use crate::tramp;
use mimeo_arch_x86::cpuid::{CpuModel, Vendor};
use mimeo_bt_verify::Contract;
use mimeo_codemem::CodeMemory;
use mimeo_memory::{CodeWriteHook, GuestMemory};
use mimeo_vcpu::EngineError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

/// Bytes of the code cache: thunks, hot code, cold code.
const CACHE: usize = 64 << 20;
const HOT_START: u32 = 4096;
const COLD_START: u32 = 30 << 20;
/// More than any block can need.
const BLOCK_ROOM: u32 = 64 << 10;
/// Offset of the jump to the exit trampoline.
const EXIT_THUNK: u32 = 0;
/// Offset of the entry that empty branch-cache slots lead to.
const MISS_THUNK: u32 = 64;
/// Instructions with misaligned operands that are remembered.
const MISALIGNED_LIMIT: u64 = 1 << 16;
/// Several write words map the page.
const MANY: u64 = u64::MAX;

/// What identifies a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// Physical page index.
    pub(crate) page: u32,
    /// Physical page index of the next linear page, for a block of one instruction that spans both;
    /// else [`Key::ONE_PAGE`].
    pub(crate) second: u32,
    /// Full RIP: the code embeds linear addresses.
    pub(crate) rip: u64,
    /// Mode.
    pub(crate) mode: Mode,
}

impl Key {
    /// The block lies in one page.
    pub(crate) const ONE_PAGE: u32 = u32::MAX;
}

#[derive(Debug)]
struct Block {
    key: Key,
    entry: u32,
    /// End of its hot code.
    end: u32,
    /// RIP after its last instruction.
    next: u64,
    /// Instructions in it, other than its first, that were branched to.
    aliases: Vec<Key>,
    /// Its cold code.
    cold: std::ops::Range<u32>,
    /// Chained branches into it: (where the displacement is, what it was).
    incoming: Vec<(u32, u32)>,
}

/// Counters of the translator.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct TranslatorStats {
    pub(crate) blocks: u64,
    pub(crate) insns: u64,
    pub(crate) guest_bytes: u64,
    pub(crate) host_bytes: u64,
    pub(crate) cold_bytes: u64,
    pub(crate) interp_insns: u64,
    pub(crate) links: u64,
    pub(crate) invalidations: u64,
    pub(crate) misaligned: u64,
    pub(crate) drops: u64,
}

#[derive(Debug)]
struct Translator {
    code: CodeMemory,
    hot: u32,
    cold: u32,
    /// Block number and cache offset of every RIP that was asked for.
    map: IntMap<Key, (u32, u32)>,
    blocks: Vec<Option<Block>>,
    by_page: IntMap<u32, Vec<u32>>,
    /// Offsets in each physical page, ascending, of instructions that have met misaligned operands.
    misaligned: IntMap<u32, Vec<u16>>,
    stats: TranslatorStats,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) cpu: Arc<CpuModel>,
    pub(crate) index: Index,
    /// Executable address of the cache.
    base: u64,
    translator: Mutex<Translator>,
    generation: AtomicU64,
    peers: RwLock<Vec<Weak<Peer>>>,
    /// For each page: which write word maps it (see [`Self::note_writer`]).
    writers: LazyArray,
    pub(crate) options: BtOptions,
    /// Verify every block before it may run.
    contract: Option<Contract>,
}

struct Hook(Weak<Shared>);

impl CodeWriteHook for Hook {
    fn code_written(&self, page: usize, _offset: usize, _len: usize) {
        if let Some(shared) = self.0.upgrade() {
            shared.invalidate(page as u32);
        }
    }

    fn watch_again(&self, page: Option<usize>) {
        let Some(shared) = self.0.upgrade() else {
            return;
        };
        match page {
            Some(page) => shared.revoke(page, None),
            None => shared.revoke_all(),
        }
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn host_error(what: &str) -> impl FnOnce(std::io::Error) -> EngineError {
    move |source| EngineError::Host {
        what: what.to_owned(),
        source,
    }
}

impl Shared {
    /// Sets up the code cache of one VM.
    pub(crate) fn new(
        memory: Arc<GuestMemory>,
        cpu: Arc<CpuModel>,
        options: BtOptions,
    ) -> Result<Arc<Self>, EngineError> {
        let mut code = CodeMemory::new(CACHE).map_err(|e| EngineError::Unsupported {
            engine: "bt",
            reason: e.to_string(),
        })?;
        let base = code.base().as_ptr() as u64;
        let thunks = thunks();
        code.write(0, &thunks)
            .map_err(|e| EngineError::Internal(e.to_string()))?;
        let shared = Arc::new(Self {
            index: Index::new().map_err(host_error("cannot reserve the block index"))?,
            writers: LazyArray::new(memory.tracker().pages().max(1))
                .map_err(host_error("cannot reserve the page map"))?,
            base,
            translator: Mutex::new(Translator {
                code,
                hot: HOT_START,
                cold: COLD_START,
                map: IntMap::default(),
                blocks: Vec::new(),
                by_page: IntMap::default(),
                misaligned: IntMap::default(),
                stats: TranslatorStats::default(),
            }),
            generation: AtomicU64::new(0),
            peers: RwLock::new(Vec::new()),
            memory,
            cpu,
            contract: options.paranoid.then(contract),
            options,
        });
        let hook = Arc::new(Hook(Arc::downgrade(&shared)));
        if shared.memory.tracker().set_code_write_hook(hook).is_err() {
            return Err(EngineError::Internal(
                "the guest memory already has a translator".into(),
            ));
        }
        Ok(shared)
    }

    /// How often all translations were dropped.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Executable addresses of the cache.
    pub(crate) fn range(&self) -> std::ops::Range<u64> {
        self.base..self.base + CACHE as u64
    }

    /// Where empty slots of a branch cache lead.
    pub(crate) fn miss_address(&self) -> u64 {
        self.base + u64::from(MISS_THUNK)
    }

    /// The executable address of a cache offset.
    pub(crate) fn address(&self, offset: u32) -> u64 {
        self.base + u64::from(offset)
    }

    /// Registers a vCPU.
    pub(crate) fn add_peer(&self, peer: &Arc<Peer>) {
        self.peers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::downgrade(peer));
    }

    fn peers(&self) -> Vec<Arc<Peer>> {
        self.peers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }

    pub(crate) fn stats(&self) -> TranslatorStats {
        lock(&self.translator).stats
    }

    /// The cache offset at which `key` is translated, translating it if need be. `None`: the
    /// instruction at RIP cannot start a block.
    pub(crate) fn block(&self, key: Key, me: &Peer) -> Result<Option<u32>, EngineError> {
        let mut t = lock(&self.translator);
        self.block_locked(&mut t, key, me)
    }

    fn block_locked(
        &self,
        t: &mut Translator,
        key: Key,
        me: &Peer,
    ) -> Result<Option<u32>, EngineError> {
        if let Some((_, entry)) = t.map.get(&key) {
            return Ok(Some(*entry));
        }
        if let Some(entry) = self.inside(t, key) {
            return Ok(Some(entry));
        }
        if !self.index.has_room()
            || t.hot + BLOCK_ROOM > COLD_START
            || t.cold + BLOCK_ROOM > CACHE as u32
        {
            self.drop_all(t, me);
        }
        let known = t.starts_after(key);
        let Some(decoded) = self.decode(key, me, &known) else {
            return Ok(None);
        };
        let layout = Layout {
            hot: t.hot.next_multiple_of(16),
            cold: t.cold,
            exit: EXIT_THUNK,
            first_site: self.index.sites(),
        };
        let chain_mask = if key.mode.has(Mode::LARGE) {
            !0x1f_ffff
        } else {
            !0xfff
        };
        let options = Options {
            chain_mask,
            split: self.options.unchained,
            trace: self.options.trace,
            pext: crate::host::fast_pext(),
            misaligned: t.misaligned.get(&key.page).map_or(&[], Vec::as_slice),
            precise: self.options.precise_flags,
            amd: self.cpu.vendor() == Vendor::Amd,
        };
        let e = lower::lower(&decoded, options, layout);
        let (hot_end, cold_end) = (
            layout.hot + e.hot.len() as u32,
            layout.cold + e.cold.len() as u32,
        );
        if hot_end > COLD_START || cold_end > CACHE as u32 {
            return Err(EngineError::Internal("a block outgrew its room".into()));
        }
        if let Some(contract) = &self.contract {
            verify(contract, layout, &e)?;
        }
        for (at, bytes) in [(layout.hot, &e.hot), (layout.cold, &e.cold)] {
            t.code
                .write(at as usize, bytes)
                .map_err(|e| EngineError::Internal(e.to_string()))?;
        }
        for s in &e.sites {
            self.index.add_site(*s);
        }
        self.index.add_block(layout.hot, hot_end, key.rip, &e.insns);
        t.hot = hot_end;
        t.cold = cold_end;
        let n = t.blocks.len() as u32;
        t.stats.blocks += 1;
        t.stats.insns += decoded.insns.len() as u64;
        t.stats.guest_bytes += decoded.next.wrapping_sub(key.rip);
        t.stats.host_bytes += e.hot.len() as u64;
        t.stats.cold_bytes += e.cold.len() as u64;
        t.stats.interp_insns += u64::from(e.interp);
        t.blocks.push(Some(Block {
            key,
            entry: layout.hot,
            end: hot_end,
            cold: layout.cold..cold_end,
            next: decoded.next,
            aliases: Vec::new(),
            incoming: Vec::new(),
        }));
        t.map.insert(key, (n, layout.hot));
        t.by_page.entry(key.page).or_default().push(n);
        if key.second != Key::ONE_PAGE {
            t.by_page.entry(key.second).or_default().push(n);
        }
        Ok(Some(layout.hot))
    }

    /// The place of an instruction that a block holds already, other than as its first.
    fn inside(&self, t: &mut Translator, key: Key) -> Option<u32> {
        let (n, entry) = t
            .neighbours(key)
            .filter(|(_, b)| b.key.rip < key.rip && key.rip < b.next)
            .find_map(|(n, b)| {
                let offset = (key.rip - b.key.rip) as u16;
                Some((n, self.index.entry(n, offset)?))
            })?;
        if let Some(b) = &mut t.blocks[n as usize] {
            b.aliases.push(key);
        }
        t.map.insert(key, (n, entry));
        Some(entry)
    }

    /// Decodes, with the pages marked and revoked before the bytes count.
    fn decode(&self, key: Key, me: &Peer, known: &[u64]) -> Option<decode::Decoded> {
        let second = (key.second != Key::ONE_PAGE).then_some(key.second);
        let pages: Vec<usize> = [Some(key.page), second]
            .into_iter()
            .flatten()
            .map(|p| p as usize)
            .collect();
        let copy = || {
            let mut bytes = vec![0; 4096 * pages.len()];
            for (page, chunk) in pages.iter().zip(bytes.chunks_exact_mut(4096)) {
                let gpa = self.memory.page_address(*page)?;
                self.memory.read(gpa, chunk).ok()?;
            }
            Some(bytes)
        };
        for _ in 0..16 {
            let before = copy()?;
            let mut d = decode::block(
                &before,
                key.rip,
                key.mode,
                &self.cpu,
                self.options.precise_flags,
                known,
            );
            if d.insns.is_empty() {
                return None;
            }
            merge(&mut d.ranges);
            for &(offset, len) in &d.ranges {
                self.mark(&pages, offset, len);
            }
            for &page in &pages {
                self.revoke(page, Some(me.vcpu));
            }
            let after = copy()?;
            if d.ranges
                .iter()
                .all(|&(o, n)| before.get(o..o + n) == after.get(o..o + n))
            {
                return Some(d);
            }
        }
        None
    }

    /// Marks bytes of a run of pages as code.
    fn mark(&self, pages: &[usize], offset: usize, len: usize) {
        for (n, page) in pages.iter().enumerate() {
            let (from, to) = (offset.max(n * 4096), (offset + len).min((n + 1) * 4096));
            if from < to {
                self.memory
                    .tracker()
                    .mark_code(*page, from - n * 4096, to - from);
            }
        }
    }

    /// Remembers that vCPU `vcpu`'s view `view` has a write word for `page` at `index`.
    pub(crate) fn note_writer(&self, page: usize, vcpu: u32, view: u8, index: usize) {
        let word = 1 << 63 | u64::from(vcpu) << 44 | u64::from(view) << 40 | index as u64;
        let mut old = self.writers.get(page);
        while old != word && old != MANY {
            let new = if old == 0 { word } else { MANY };
            match self.writers.compare_exchange(page, old, new) {
                Ok(_) => break,
                Err(now) => old = now,
            }
        }
    }

    /// Takes back every write word, and waits until no vCPU holds one in a register.
    fn revoke_all(&self) {
        for p in self.peers() {
            p.request(Peer::FLUSH_WRITES);
            p.expel();
        }
    }

    /// Takes back every write word of a page, and waits until no vCPU (but `me`, which is outside
    /// translated code) holds one in a register.
    fn revoke(&self, page: usize, me: Option<u32>) {
        let word = self.writers.swap(page, 0);
        if word == 0 {
            return;
        }
        let peers = self.peers();
        let one = (word != MANY).then_some((word >> 44 & 0xffff) as u32);
        let concerned: Vec<_> = peers
            .iter()
            .filter(|p| one.is_none_or(|v| p.vcpu == v))
            .collect();
        for p in &concerned {
            if one.is_some() {
                p.revoke_write((word >> 40 & 15) as u8, (word & 0xf_ffff_ffff) as usize);
            } else {
                p.request(Peer::FLUSH_WRITES);
            }
        }
        for p in concerned.iter().filter(|p| Some(p.vcpu) != me) {
            p.expel();
        }
    }

    /// A write hit translated code of `page`: its blocks are gone from now on.
    fn invalidate(&self, page: u32) {
        let mut t = lock(&self.translator);
        let Some(list) = t.by_page.remove(&page) else {
            return;
        };
        t.stats.invalidations += 1;
        for n in list {
            t.remove(n);
        }
        drop(t);
        for p in self.peers() {
            p.purge(page);
        }
    }

    /// The instruction at cache offset `host` (of code cache generation `generation`) has met a misaligned
    /// operand: it is translated again, to look for page crossings instead of misalignment. The knowledge
    /// outlives the translation, so that an instruction pays for it once.
    pub(crate) fn misaligned(&self, host: u32, generation: u64) {
        let mut t = lock(&self.translator);
        if self.generation() != generation {
            return;
        }
        let Some((n, rip)) = self.index.place(host) else {
            return;
        };
        let Some(page) = t.blocks[n as usize].as_ref().map(|b| b.key.page) else {
            return;
        };
        if t.stats.misaligned.is_multiple_of(MISALIGNED_LIMIT) {
            t.misaligned.clear();
        }
        let list = t.misaligned.entry(page).or_default();
        let offset = rip as u16 & 4095;
        if let Err(at) = list.binary_search(&offset) {
            list.insert(at, offset);
        }
        t.stats.misaligned += 1;
        t.remove(n);
        drop(t);
        for p in self.peers() {
            p.purge(page);
        }
    }

    /// Chains the branch whose displacement is at `at` (an offset of code cache generation
    /// `generation`) to the block `key`.
    pub(crate) fn link(
        &self,
        at: u32,
        generation: u64,
        key: Key,
        me: &Peer,
    ) -> Result<Option<u32>, EngineError> {
        let mut t = lock(&self.translator);
        let Some(entry) = self.block_locked(&mut t, key, me)? else {
            return Ok(None);
        };
        // The source may have been dropped meanwhile; then there is nothing to patch.
        if !self.options.unchained
            && self.generation() == generation
            && at >= HOT_START
            && at.is_multiple_of(4)
        {
            let old = t
                .code
                .read(at as usize, 4)
                .ok()
                .and_then(|b| b.try_into().ok())
                .map(u32::from_le_bytes);
            let n = t.map.get(&key).map(|(n, _)| *n);
            if let (Some(old), Some(n)) = (old, n) {
                let d = entry.wrapping_sub(at + 4);
                let _ = t.code.patch_u32(at as usize, d);
                if let Some(b) = t.blocks[n as usize].as_mut() {
                    b.incoming.push((at, old));
                }
                t.stats.links += 1;
            }
        }
        Ok(Some(entry))
    }

    /// Copies of the live blocks that hold the instruction at `rip`.
    pub(crate) fn blocks_with(&self, rip: u64) -> Vec<Shown> {
        let t = lock(&self.translator);
        let read =
            |r: &std::ops::Range<u32>| t.code.read(r.start as usize, r.len()).unwrap_or_default();
        let mut shown = Vec::new();
        for b in t.blocks.iter().flatten() {
            let insns = self.index.instructions(b.entry);
            if !insns.iter().any(|i| i.0 == rip) {
                continue;
            }
            let hot = b.entry..b.end;
            shown.push(Shown {
                key: b.key,
                hot_bytes: read(&hot),
                cold_bytes: read(&b.cold),
                hot,
                cold: b.cold.clone(),
                insns,
            });
        }
        shown
    }

    /// Forgets all translations: the cache is full.
    fn drop_all(&self, t: &mut Translator, me: &Peer) {
        for p in self.peers() {
            p.request(Peer::DROP);
            if p.vcpu != me.vcpu {
                p.expel();
            }
        }
        t.map.clear();
        t.blocks.clear();
        t.by_page.clear();
        t.hot = HOT_START;
        t.cold = COLD_START;
        t.stats.drops += 1;
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.index.clear();
    }
}

impl Translator {
    /// Block `n` is found no more.
    fn remove(&mut self, n: u32) {
        let Some(b) = self.blocks[n as usize].take() else {
            return;
        };
        self.map.remove(&b.key);
        for key in &b.aliases {
            self.map.remove(key);
        }
        for (at, old) in b.incoming {
            // In range by construction; a patch into dead code is harmless.
            let _ = self.code.patch_u32(at as usize, old);
        }
    }

    /// The live blocks of the same page, linear address and mode, with their numbers.
    fn neighbours(&self, key: Key) -> impl Iterator<Item = (u32, &Block)> {
        self.by_page
            .get(&key.page)
            .into_iter()
            .flatten()
            .filter_map(|n| Some((*n, self.blocks[*n as usize].as_ref()?)))
            .filter(move |(_, b)| {
                b.key.second == key.second
                    && b.key.mode == key.mode
                    && b.key.rip >> 12 == key.rip >> 12
            })
    }

    /// Where blocks begin after `key.rip` on its page, in ascending order.
    fn starts_after(&self, key: Key) -> Vec<u64> {
        let mut list: Vec<u64> = self
            .neighbours(key)
            .map(|(_, b)| b.key.rip)
            .filter(|rip| *rip > key.rip)
            .collect();
        list.sort_unstable();
        list
    }
}

/// Joins ranges that touch or overlap, or lie in one 64-byte line: each is marked by itself.
fn merge(ranges: &mut Vec<(usize, usize)>) {
    ranges.sort_unstable();
    ranges.dedup_by(|b, a| {
        let joins = b.0 <= (a.0 + a.1).next_multiple_of(64);
        if joins {
            a.1 = a.1.max(b.0 + b.1 - a.0);
        }
        joins
    });
}

/// What emitted code may do with the context block.
pub(crate) fn contract() -> Contract {
    let words = |list: &[i32]| list.iter().map(|at| *at..at + 8).collect::<Vec<_>>();
    let halves = |list: &[i32]| list.iter().map(|at| *at..at + 4).collect::<Vec<_>>();
    let registers = 0..128;
    let mut readable = words(&[
        at!(rl),
        at!(view_sup),
        at!(view_ac),
        at!(fs_base),
        at!(gs_base),
        at!(kernel_gs),
        at!(sysflags),
        at!(scratch),
        at!(flags),
        at!(traced),
        at!(lstar),
        at!(fmask_kept),
        at!(syscall_cs),
        at!(syscall_ss),
        at!(sysret_cs),
        at!(sysret_ss),
        at!(user_cs_at),
        at!(user_ss_at),
        at!(own_cs),
        at!(own_ss),
        at!(own_cs_at),
        at!(own_ss_at),
        at!(tsc_offset),
        at!(tsc_aux),
        at!(page_mask),
    ]);
    readable.extend(halves(&[
        at!(df),
        at!(iflag),
        at!(ac),
        at!(pending),
        at!(syscall_ok),
        at!(sysret_ok),
        at!(iret_user_ok),
        at!(iret_own_ok),
        at!(own_ss_kind),
        at!(tsc_ok),
        at!(fsgsbase_ok),
    ]));
    readable.extend([
        registers.clone(),
        at!(selectors)..at!(selectors) + 48,
        at!(cr)..at!(cr) + 32,
    ]);
    let mut writable = words(&[
        at!(fs_base),
        at!(gs_base),
        at!(kernel_gs),
        at!(sysflags),
        at!(scratch),
        at!(flags),
        at!(traced),
        at!(selectors) + 8,
        at!(selectors) + 16,
    ]);
    writable.extend(halves(&[
        at!(df),
        at!(iflag),
        at!(ac),
        at!(site),
        at!(cs_kind),
        at!(ss_kind),
    ]));
    writable.push(registers);
    Contract {
        readable,
        writable,
        site: at!(site),
        view: at!(rl),
        views: vec![at!(view_sup), at!(view_ac), at!(view_user)],
        bias: RL_BIAS as i32,
        page_mask: at!(page_mask),
        cache_entries: crate::ibtc::ENTRIES as u32,
    }
}

pub(crate) fn verify(contract: &Contract, layout: Layout, e: &Emitted) -> Result<(), EngineError> {
    let entries: Vec<u32> = e.insns.iter().map(|(_, host)| *host).collect();
    let block = mimeo_bt_verify::Block {
        hot: &e.hot,
        hot_at: layout.hot,
        cold: &e.cold,
        cold_at: layout.cold,
        entries: &entries,
        exit: layout.exit,
        sites: layout.first_site..layout.first_site + e.sites.len() as u32,
    };
    mimeo_bt_verify::verify(&block, contract).map_err(|r| EngineError::Internal(r.to_string()))
}

/// The fixed code at the start of the cache.
fn thunks() -> Vec<u8> {
    let mut asm = Asm::default();
    // jmp [rip]; dq exit
    asm.buf.extend_from_slice(&[0xff, 0x25, 0, 0, 0, 0]);
    asm.qword(tramp::exit_address());
    asm.buf.resize(MISS_THUNK as usize, 0xcc);
    // An empty slot was hit by RIP = 2^64 - 1, whose tag is zero: leave as an unknown target.
    asm.store_imm32(crate::ctx::field(at!(site)), tramp::SITE_NO_TARGET);
    asm.buf.extend_from_slice(&[0xff, 0x25, 0, 0, 0, 0]);
    asm.qword(tramp::exit_address());
    asm.buf
}
