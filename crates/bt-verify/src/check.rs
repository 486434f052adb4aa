//! The abstract interpretation.

use crate::allow::{denied, faults_misaligned, string_move};
use crate::state::{Flags, Id, Slot, State, Val};
use crate::strings;
use crate::{Block, Contract, Rejected};
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic as M,
    OpAccess, OpKind, Register,
};
use std::collections::{BTreeMap, BTreeSet};

const RSP: usize = 4;
const R15: usize = 15;

/// A table register value, read from the context.
const VIEW: Val = Val::Plain(Id::At(u32::MAX, 15));

/// How often a join may lose knowledge before the block is rejected. Real blocks need two or three.
const MAX_VISITS: u32 = 64;

/// Checks a block against the rules in the crate's documentation.
///
/// # Errors
/// The first instruction that breaks one.
pub fn verify(block: &Block<'_>, contract: &Contract) -> Result<(), Rejected> {
    Checker::new(block, contract)?.run()
}

struct Checker<'a> {
    block: &'a Block<'a>,
    contract: &'a Contract,
    code: BTreeMap<u32, Instruction>,
    before: BTreeMap<u32, State>,
    entries: BTreeSet<u32>,
    todo: Vec<u32>,
    visits: BTreeMap<u32, u32>,
    info: InstructionInfoFactory,
}

type Check<T> = Result<T, String>;

fn number(r: Register) -> Option<usize> {
    r.is_gpr().then(|| r.full_register().number())
}

fn err<T>(why: &str) -> Check<T> {
    Err(why.to_owned())
}

impl<'a> Checker<'a> {
    fn new(block: &'a Block<'a>, contract: &'a Contract) -> Result<Self, Rejected> {
        let mut code = BTreeMap::new();
        for (bytes, at) in [(block.hot, block.hot_at), (block.cold, block.cold_at)] {
            let mut d = Decoder::with_ip(64, bytes, u64::from(at), DecoderOptions::NONE);
            for i in &mut d {
                code.insert(i.ip() as u32, i);
            }
        }
        let mut checker = Self {
            block,
            contract,
            code,
            before: BTreeMap::new(),
            entries: BTreeSet::new(),
            todo: Vec::new(),
            visits: BTreeMap::new(),
            info: InstructionInfoFactory::new(),
        };
        for e in block.entries {
            let at = block.hot_at + e;
            checker.entries.insert(at);
            // A guest instruction that emits nothing shares its entry with the next one.
            if *e as usize != block.hot.len() && !checker.code.contains_key(&at) {
                return Err(
                    checker.reject(at, "an entry is not the start of an instruction".into())
                );
            }
            checker.before.insert(at, State::top(at));
            checker.todo.push(at);
        }
        Ok(checker)
    }

    fn reject(&self, at: u32, why: String) -> Rejected {
        let text = self
            .code
            .get(&at)
            .map_or_else(|| "nothing".into(), ToString::to_string);
        Rejected { at, text, why }
    }

    fn run(mut self) -> Result<(), Rejected> {
        // Code that nothing reaches may be entered by a wild branch of another block: none is left.
        let linear: Vec<u32> = self.code.keys().copied().collect();
        loop {
            while let Some(at) = self.todo.pop() {
                let state = self.before[&at].clone();
                self.step(at, state).map_err(|why| self.reject(at, why))?;
            }
            let Some(&at) = linear.iter().find(|at| !self.before.contains_key(at)) else {
                return Ok(());
            };
            // Unreached (padding, a stub that is patched in later): it must be safe from scratch.
            self.before.insert(at, State::top(at));
            self.todo.push(at);
        }
    }

    /// Execution goes on at `to` with `state`.
    fn flow(&mut self, to: u64, state: &State) -> Check<()> {
        let to = u32::try_from(to).map_err(|_| "branch out of the code cache".to_owned())?;
        if to == self.block.exit {
            return if state.site_stored {
                Ok(())
            } else {
                err("leaves without a site number")
            };
        }
        if self.entries.contains(&to) {
            return Ok(()); // checked from scratch
        }
        if !self.code.contains_key(&to) {
            return err("goes where no instruction of this block starts");
        }
        let joined = match self.before.get(&to) {
            None => state.clone(),
            Some(known) => {
                let joined = known.join(state, to);
                if joined == *known {
                    return Ok(());
                }
                joined
            }
        };
        let visits = self.visits.entry(to).or_default();
        *visits += 1;
        if *visits > MAX_VISITS {
            return err("does not settle");
        }
        self.before.insert(to, joined);
        self.todo.push(to);
        Ok(())
    }

    fn step(&mut self, at: u32, state: State) -> Check<()> {
        let Some(&i) = self.code.get(&at) else {
            return err("runs off the end");
        };
        let info = self.info.info(&i).clone();
        if let Some(why) = denied(&i, &info) {
            return Err(why);
        }
        match i.flow_control() {
            FlowControl::Next => {
                let next = self.effect(at, &i, &info, state)?;
                self.flow(i.next_ip(), &next)
            }
            FlowControl::UnconditionalBranch => self.flow(i.near_branch_target(), &state),
            FlowControl::ConditionalBranch => {
                let (taken, other) = Self::split(&i, state)?;
                self.flow(i.near_branch_target(), &taken)?;
                self.flow(i.next_ip(), &other)
            }
            _ => self.through_cache(&i, &state),
        }
    }

    /// `jmp [entry + 8]` after the tag matched.
    fn through_cache(&self, i: &Instruction, state: &State) -> Check<()> {
        let slot = self.cache_operand(i, state, 8)?;
        if state.matched.contains(&slot) {
            Ok(())
        } else {
            err("branch-cache entry used without comparing its tag")
        }
    }

    /// The displacement from R15 of the branch cache's first entry.
    fn cache_at(&self) -> i64 {
        -i64::from(self.contract.bias) - 16 * i64::from(self.contract.cache_entries)
    }

    /// A memory operand with base R15 lies below the read table.
    fn in_cache(&self, i: &Instruction) -> bool {
        let disp = i.memory_displacement64() as i64;
        (self.cache_at()..-i64::from(self.contract.bias)).contains(&disp)
    }

    /// The branch-cache entry that a memory operand names, `field` bytes into it.
    fn cache_operand(&self, i: &Instruction, state: &State, field: i64) -> Check<Slot> {
        let plain = i.segment_prefix() == Register::None && number(i.memory_base()) == Some(R15);
        if !plain || !self.in_cache(i) {
            return err("not a branch-cache entry");
        }
        let at = i.memory_displacement64() as i64 - self.cache_at() - field;
        match number(i.memory_index()).map(|n| state.regs[n]) {
            None if at >= 0 && at % 16 == 0 => Ok(Slot::Fixed(at as i32)),
            // Twice 16 bits, times 8: inside, if there are as many entries.
            Some(Val::Low16 {
                of,
                ror,
                twice: true,
            }) if at == 0
                && i.memory_index_scale() == 8
                && self.contract.cache_entries >= 1 << 16 =>
            {
                Ok(Slot::Of(of, ror))
            }
            _ => err("not a branch-cache entry"),
        }
    }

    /// What a conditional branch tells on either side.
    fn split(i: &Instruction, state: State) -> Check<(State, State)> {
        let (mut taken, mut other) = (state.clone(), state);
        taken.site_stored = false;
        other.site_stored = false;
        match i.code() {
            Code::Jrcxz_rel8_64 | Code::Jecxz_rel8_64 => {}
            _ if matches!(i.mnemonic(), M::Loop | M::Loope | M::Loopne) => {
                let at = i.ip() as u32;
                for state in [&mut taken, &mut other] {
                    state.forget(at);
                    state.regs[1] = Val::Plain(Id::At(at, 1));
                }
            }
            _ => {
                let (on_taken, on_other) = match i.mnemonic() {
                    M::Je | M::Jb => (false, true),
                    M::Jne | M::Jae => (true, false),
                    _ => (false, false),
                };
                for (state, holds) in [(&mut taken, on_taken), (&mut other, on_other)] {
                    // `holds`: ZF and CF are known to be clear on this side.
                    Self::learn(state, i.mnemonic(), holds);
                }
            }
        }
        Ok((taken, other))
    }

    /// `clear`: the flag that the branch looked at is clear here.
    fn learn(state: &mut State, m: M, clear: bool) {
        let zero_flag = matches!(m, M::Je | M::Jne);
        match state.flags {
            Flags::Zero(of, write) if zero_flag && clear => {
                state.valid.insert((of, write));
            }
            Flags::Crosses(of, size) if !zero_flag && clear => {
                let known = state.fits.entry(of).or_default();
                *known = (*known).max(size);
            }
            Flags::Tag(slot) if zero_flag && !clear => {
                state.matched.insert(slot);
            }
            // ZF set after TEST means that none of the bits is set.
            Flags::LowBits(of, mask) if zero_flag && !clear && matches!(m, M::Je | M::Jne) => {
                let known = state.fits.entry(of).or_default();
                *known = (*known).max(mask + 1);
            }
            _ => {}
        }
    }
}

/// Effects of straight-line instructions.
impl Checker<'_> {
    fn effect(
        &mut self,
        at: u32,
        i: &Instruction,
        info: &iced_x86::InstructionInfo,
        mut s: State,
    ) -> Check<State> {
        s.site_stored = false;
        s.forget(at);
        if let Some((shift, moves)) = string_move(i) {
            strings::check(&s, shift, moves)?;
        }
        let loaded = self.memory(i, info, &mut s)?;
        let known = loaded.or_else(|| self.value(i, &s));
        let flags = self.flags_after(i, &s);
        for r in info.used_registers() {
            let writes = !matches!(
                r.access(),
                OpAccess::None | OpAccess::Read | OpAccess::CondRead
            );
            let Some(n) = number(r.register()).filter(|_| writes) else {
                continue;
            };
            if matches!(s.flags, Flags::Less(a, b) if [a, b].contains(&(n as u8))) {
                s.flags = Flags::Unknown;
            }
            let whole = i.op0_kind() == OpKind::Register && number(i.op0_register()) == Some(n);
            s.regs[n] = match known {
                Some(v) if whole => v,
                _ => Val::Plain(Id::At(at, n as u8)),
            };
            if n == R15 {
                if known != Some(VIEW) {
                    return err("writes R15");
                }
                // What was looked up in another view says nothing about this one.
                s.valid.clear();
                s.matched.clear();
                s.flags = Flags::Unknown;
            }
        }
        if i.rflags_modified() != 0 {
            s.flags = flags;
        }
        Ok(s)
    }

    /// Checks the memory operand; gives what a plain load of it yields, if that is known.
    fn memory(
        &self,
        i: &Instruction,
        info: &iced_x86::InstructionInfo,
        s: &mut State,
    ) -> Check<Option<Val>> {
        let Some(op) = (0..i.op_count()).find(|&n| i.op_kind(n) == OpKind::Memory) else {
            return Ok(None);
        };
        let access = info.op_access(op);
        if matches!(access, OpAccess::None | OpAccess::NoMemAccess) {
            return Ok(None); // LEA, NOP, prefetches of nothing
        }
        if i.is_ip_rel_memory_operand() || i.memory_base().is_gpr32() || i.memory_index().is_gpr32()
        {
            return err("RIP-relative or 32-bit address");
        }
        let size = u32::try_from(i.memory_size().size()).unwrap_or(u32::MAX);
        if size == 0 || size > 64 {
            return err("memory operand of unknown or large size");
        }
        if matches!(i.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
            && i.op1_kind() == OpKind::Register
            && !number(i.op1_register())
                .is_some_and(|n| matches!(s.regs[n], Val::Below(m) if m <= size * 8))
        {
            return err("bit offset in a register reaches beyond the operand");
        }
        let writes = !matches!(access, OpAccess::Read | OpAccess::CondRead);
        let base = number(i.memory_base());
        let index = number(i.memory_index());
        let segment = i.segment_prefix();
        if base == Some(RSP) {
            return self.context(i, s, writes, size as i32);
        }
        if base == Some(R15) && self.in_cache(i) {
            return match i.code() {
                Code::Cmp_r64_rm64 | Code::Cmp_rm64_imm8 | Code::Cmp_rm64_imm32 => {
                    self.cache_operand(i, s, 0).map(|_| None)
                }
                _ => err("branch cache used for something else than a comparison"),
            };
        }
        if base == Some(R15) {
            let load = matches!(i.code(), Code::Mov_r64_rm64) && !writes;
            return self.table(i, s, index, segment, load);
        }
        if segment != Register::None {
            return err("segment override outside the table lookup");
        }
        self.guest(i, s, writes, size, base, index)?;
        Ok(None)
    }

    fn context(
        &self,
        i: &Instruction,
        s: &mut State,
        writes: bool,
        size: i32,
    ) -> Check<Option<Val>> {
        let c = self.contract;
        let disp = i.memory_displacement64() as i32;
        if i.memory_index() != Register::None || i.segment_prefix() != Register::None {
            return err("indexed or overridden context access");
        }
        let inside = |ranges: &[std::ops::Range<i32>]| {
            ranges
                .iter()
                .any(|r| r.start <= disp && disp + size <= r.end)
        };
        if writes {
            if disp == c.site && i.code() == Code::Mov_rm32_imm32 {
                let site = i.immediate32();
                if !self.block.sites.contains(&site) {
                    return err("a site number that is not this block's");
                }
                s.site_stored = true;
                return Ok(None);
            }
            if disp == c.view {
                let whole = i.code() == Code::Mov_rm64_r64;
                return if whole && number(i.op1_register()) == Some(R15) {
                    Ok(None)
                } else {
                    err("switches to an unknown view")
                };
            }
            return if inside(&c.writable) {
                Ok(None)
            } else {
                err("writes a protected context field")
            };
        }
        let plain = i.code() == Code::Mov_r64_rm64;
        if plain && c.views.contains(&disp) && number(i.op0_register()) == Some(R15) {
            return Ok(Some(VIEW));
        }
        if inside(&c.readable) {
            Ok(None)
        } else {
            err("reads a protected context field")
        }
    }

    fn table(
        &self,
        i: &Instruction,
        s: &mut State,
        index: Option<usize>,
        segment: Register,
        load: bool,
    ) -> Check<Option<Val>> {
        let write = match segment {
            Register::None => false,
            Register::GS => true,
            _ => return err("wrong segment in a table lookup"),
        };
        let disp = i.memory_displacement64() as i64;
        let of = match index.map(|n| s.regs[n]) {
            Some(Val::Index(of)) => of,
            // An index computed by the emitter, for a constant address: the access must later name
            // that page; all addresses in it have the same addend, so that its first stands for them.
            Some(Val::Plain(Id::Const(v))) if v < 1 << 36 => Id::Const(v << 12),
            _ => return err("table index is not bounded"),
        };
        if !load || i.memory_index_scale() != 8 || disp != -i64::from(self.contract.bias) {
            return err("not a table lookup");
        }
        // This copy of the addend has not been tested yet.
        s.valid.remove(&(of, write));
        Ok(Some(Val::Addend { of, write }))
    }

    /// `[x + addend(x)]` or `[host(x)]`.
    fn guest(
        &self,
        i: &Instruction,
        s: &State,
        writes: bool,
        size: u32,
        base: Option<usize>,
        index: Option<usize>,
    ) -> Check<()> {
        let disp = i.memory_displacement64();
        let value = |n: Option<usize>| n.map(|n| s.regs[n]);
        let (of, write) = match (value(base), value(index)) {
            // Further into what is known to lie in the page.
            (Some(Val::Host { of, write }), None)
                if disp == 0 || disp < 4096 && s.fits(of, disp as u32 + size) =>
            {
                (of, write)
            }
            (Some(Val::Host { .. }), None) if disp < 4096 => return err("may straddle a page"),
            _ if disp != 0 => return err("displacement on a guest address"),
            (Some(a), Some(b)) if i.memory_index_scale() == 1 => self
                .sum(s, a, b)
                .ok_or("not the address that was looked up")?,
            _ => return err("not a looked-up address"),
        };
        if writes && !write {
            return err("stores through the read table");
        }
        if !s.fits(of, size) && !faults_misaligned(i, size as usize) {
            return err("may straddle a page");
        }
        Ok(())
    }

    /// x + addend(x), valid: the name of x and the table.
    fn sum(&self, s: &State, a: Val, b: Val) -> Option<(Id, bool)> {
        for (x, t) in [(a, b), (b, a)] {
            if let (Val::Plain(x), Val::Addend { of, write }) = (x, t) {
                let same = match (x, of) {
                    // Canonical addresses of one page share bits 47 to 12.
                    (Id::Const(x), Id::Const(page)) => {
                        x >> 12 & 0xf_ffff_ffff == page >> 12 && canonical(x)
                    }
                    (x, of) => x == of,
                };
                if same && s.valid.contains(&(of, write)) {
                    return Some((x, write));
                }
            }
        }
        None
    }

    /// What the destination holds, for the instructions of the known sequences.
    fn value(&self, i: &Instruction, s: &State) -> Option<Val> {
        let reg = |n: u32| number(i.op_register(n)).map(|n| s.regs[n]);
        let name = |v: Val| {
            if let Val::Plain(id) = v {
                Some(id)
            } else {
                None
            }
        };
        match i.code() {
            Code::Mov_r64_rm64 | Code::Mov_rm64_r64 if i.op1_kind() == OpKind::Register => reg(1),
            Code::Mov_r64_imm64
            | Code::Mov_rm64_imm32
            | Code::Mov_r32_imm32
            | Code::Mov_rm32_imm32
                if i.op0_kind() == OpKind::Register =>
            {
                Some(Val::Plain(Id::Const(i.immediate(1))))
            }
            Code::Xor_r32_rm32 | Code::Xor_rm32_r32
                if i.op1_kind() == OpKind::Register && i.op0_register() == i.op1_register() =>
            {
                Some(Val::Plain(Id::Const(0)))
            }
            Code::VEX_Rorx_r64_rm64_imm8
                if [48, 6].contains(&i.immediate8()) && i.op1_kind() == OpKind::Register =>
            {
                Some(Val::Rotated(name(reg(1)?)?, i.immediate8()))
            }
            // The field's 36 bits set, gathered at the bottom: bits 47 to 12.
            Code::VEX_Pext_r64_r64_rm64
                if i.op2_kind() == OpKind::Memory
                    && number(i.memory_base()) == Some(RSP)
                    && i.memory_index() == Register::None
                    && i.memory_displacement64() as i32 == self.contract.page_mask =>
            {
                Some(Val::Index(name(reg(1)?)?))
            }
            // R15's low six bits are 28: rotated right by 48, then right by 28, leaves bits 47 to 12.
            Code::VEX_Shrx_r64_rm64_r64
                if i.op1_kind() == OpKind::Register
                    && i.op2_register() == Register::R15
                    && self.contract.bias & 63 == 28 =>
            {
                match reg(1)? {
                    Val::Rotated(of, 48) => Some(Val::Index(of)),
                    _ => None,
                }
            }
            Code::Movzx_r32_rm16 if i.op1_kind() == OpKind::Register => {
                let (of, ror) = match reg(1)? {
                    Val::Plain(of) => (of, 0),
                    Val::Rotated(of, 6) => (of, 6),
                    _ => return None,
                };
                Some(Val::Low16 {
                    of,
                    ror,
                    twice: false,
                })
            }
            Code::Mov_r32_rm32 | Code::Mov_rm32_r32 if i.op1_kind() == OpKind::Register => {
                Some(Val::Low32(name(reg(1)?)?))
            }
            Code::Or_rm32_imm32
                if i.op0_kind() == OpKind::Register && i.immediate32() == 0xffff_f000 =>
            {
                match reg(0)? {
                    Val::Low32(of) => Some(Val::InPage(of)),
                    _ => None,
                }
            }
            Code::Lea_r64_m => self.address(i, s),
            _ => strings::value(i, s),
        }
    }

    /// LEA.
    fn address(&self, i: &Instruction, s: &State) -> Option<Val> {
        if i.is_ip_rel_memory_operand() {
            return None;
        }
        let base = number(i.memory_base()).map(|n| s.regs[n])?;
        let index = number(i.memory_index()).map(|n| s.regs[n]);
        let (scale, disp) = (i.memory_index_scale(), i.memory_displacement64() as i64);
        match (base, index) {
            (base, None) if disp == 0 => Some(base),
            (
                Val::Low16 {
                    of,
                    ror,
                    twice: false,
                },
                Some(other),
            ) if other == base && scale == 1 && disp == 0 => Some(Val::Low16 {
                of,
                ror,
                twice: true,
            }),
            (a, Some(b)) if scale == 1 && disp == 0 => {
                let (of, write) = self.sum(s, a, b)?;
                Some(Val::Host { of, write })
            }
            _ => None,
        }
    }

    /// The entry is the one in which the value's translation would stand.
    fn belongs(slot: Slot, of: Id) -> bool {
        match (slot, of) {
            (Slot::Of(x, ror), of) => x == of && matches!(ror, 0 | 6),
            (Slot::Fixed(at), Id::Const(v)) => [v, v.rotate_right(6)]
                .map(|v| 16 * i32::from(v as u16))
                .contains(&at),
            (Slot::Fixed(_), Id::At(..)) => false,
        }
    }

    /// What the flags mean after the instruction. The straddle test is `mov t32, x32; or t32, -4096;
    /// add t32, size - 1`: it carries when the last byte is in the next page.
    fn flags_after(&self, i: &Instruction, s: &State) -> Flags {
        let zero_or = |n: u32| number(i.op_register(n)).map(|n| s.regs[n]);
        match i.code() {
            Code::Test_rm64_r64
                if i.op0_kind() == OpKind::Register && i.op0_register() == i.op1_register() =>
            {
                match zero_or(0) {
                    Some(Val::Addend { of, write }) => Flags::Zero(of, write),
                    _ => Flags::Unknown,
                }
            }
            Code::Cmp_r64_rm64 | Code::Cmp_rm64_imm8 | Code::Cmp_rm64_imm32
                if number(i.memory_base()) == Some(R15) && self.in_cache(i) =>
            {
                let of = match i.code() {
                    Code::Cmp_r64_rm64 => match zero_or(0) {
                        Some(Val::Plain(of)) => Some(of),
                        _ => None,
                    },
                    _ => Some(Id::Const(i.immediate(1))),
                };
                match (self.cache_operand(i, s, 0), of) {
                    (Ok(slot), Some(of)) if Self::belongs(slot, of) => Flags::Tag(slot),
                    _ => Flags::Unknown,
                }
            }
            Code::Test_rm8_imm8 | Code::Test_AL_imm8 if i.op0_kind() == OpKind::Register => {
                let low = !matches!(
                    i.op0_register(),
                    Register::AH | Register::BH | Register::CH | Register::DH
                );
                let mask = u32::from(i.immediate8());
                match zero_or(0) {
                    Some(Val::Plain(of)) if low && (mask + 1).is_power_of_two() => {
                        Flags::LowBits(of, mask)
                    }
                    _ => Flags::Unknown,
                }
            }
            Code::Add_rm32_imm8 | Code::Add_rm32_imm32 | Code::Add_EAX_imm32
                if i.op0_kind() == OpKind::Register =>
            {
                let n = i.immediate(1);
                match zero_or(0) {
                    Some(Val::InPage(of)) if n < 4096 => Flags::Crosses(of, n as u32 + 1),
                    _ => Flags::Unknown,
                }
            }
            Code::Cmp_r64_rm64 | Code::Cmp_rm64_r64
                if i.op0_kind() == OpKind::Register && i.op1_kind() == OpKind::Register =>
            {
                let pair = number(i.op0_register()).zip(number(i.op1_register()));
                pair.map_or(Flags::Unknown, |(a, b)| Flags::Less(a as u8, b as u8))
            }
            _ => Flags::Unknown,
        }
    }
}

fn canonical(v: u64) -> bool {
    let high = (v as i64) >> 47;
    high == 0 || high == -1
}
