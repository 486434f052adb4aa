//! Predecoded blocks, keyed by physical address and code size.
//!
//! A block lies inside one page and ends with a branch, with an instruction that changes how what
//! follows is executed, or at the page's end. It is valid while its page's version
//! ([`mimeo_memory::PageTracker`]) is the one that it was decoded under. A direct-mapped cache in
//! front finds the block of a linear address; it is valid for one generation of the TLB.

use crate::decode::{self, Lower, MAX_LEN};
use crate::exec::{FlagsBefore, flags_before, without_flags};
use crate::{Cpu, Handler, Op, Prefix, Trap};
use iced_x86::DecoderError;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Ops that all vCPUs of a VM keep together (about 5 MB): each drops its own when its share is full.
const VM_OPS: usize = 1 << 17;
/// What a vCPU keeps at the least, however many there are.
const MIN_OPS: usize = 1 << 14;
/// Instructions in a block (their number fits [`Op::pos`]).
const MAX_BLOCK: usize = 128;
const JUMPS: usize = 1 << 14;

/// A run of ops.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    page: u32,
    version: u32,
    first: u32,
    count: u32,
    /// Bytes of code.
    pub(crate) bytes: u32,
}

#[derive(Clone, Copy)]
struct Jump {
    linear: u64,
    key: u64,
    generation: u32,
    block: Block,
}

/// Multiplicative hash of an integer key.
#[derive(Default)]
pub(crate) struct IntHasher(u64);

impl Hasher for IntHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }
    fn write_u64(&mut self, v: u64) {
        let x = (self.0 ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = x ^ (x >> 32);
    }
}

/// A vCPU's predecoded code.
pub(crate) struct BlockCache {
    ops: Vec<Op>,
    blocks: Vec<Block>,
    index: HashMap<u64, u32, BuildHasherDefault<IntHasher>>,
    jumps: Box<[Jump]>,
    max_ops: usize,
    pub(crate) decoded: u64,
    pub(crate) flushes: u64,
}

/// What is to be executed next.
pub(crate) enum Next<'a> {
    /// A block.
    Block(Block, &'a [Op]),
    /// One instruction that no block holds (it crosses a page, or lies outside memory).
    Single,
}

impl BlockCache {
    /// The cache of one of `cpus` vCPUs.
    pub(crate) fn new(cpus: u32) -> Self {
        let max_ops = (VM_OPS / cpus.max(1) as usize).max(MIN_OPS);
        let none = Jump {
            linear: 0,
            key: u64::MAX,
            generation: 0,
            block: Block {
                page: 0,
                version: 0,
                first: 0,
                count: 0,
                bytes: 0,
            },
        };
        Self {
            // All at once: growing by doubling would leave twice the memory behind. Untouched
            // capacity costs nothing.
            ops: Vec::with_capacity(max_ops + MAX_BLOCK),
            blocks: Vec::with_capacity(max_ops / 2),
            index: HashMap::default(),
            jumps: vec![none; JUMPS].into_boxed_slice(),
            max_ops,
            decoded: 0,
            flushes: 0,
        }
    }

    fn jump_slot(linear: u64) -> usize {
        (linear ^ (linear >> 14)) as usize % JUMPS
    }

    /// The block at CS:RIP.
    ///
    /// # Errors
    /// The fetch's fault.
    #[inline]
    pub(crate) fn next(&mut self, cpu: &mut Cpu) -> Result<Next<'_>, Trap> {
        let linear = decode::code_linear(cpu);
        let key = cpu.fetch_key();
        let j = &self.jumps[Self::jump_slot(linear)];
        if j.linear == linear && j.key == key && j.generation == cpu.tlb.generation {
            let b = j.block;
            if cpu.tracker.version(b.page as usize) == b.version {
                return Ok(Next::Block(
                    b,
                    &self.ops[b.first as usize..][..b.count as usize],
                ));
            }
        }
        self.find(cpu, linear, key)
    }

    #[inline(never)]
    fn find(&mut self, cpu: &mut Cpu, linear: u64, key: u64) -> Result<Next<'_>, Trap> {
        let gpa = cpu.translate_fetch(linear)?;
        let Some(info) = cpu.memory.page(gpa) else {
            return Ok(Next::Single);
        };
        let id = (info.index as u64) << 18 | (gpa & 0xfff) << 6 | u64::from(cpu.bits / 16);
        let known = self.index.get(&id).copied().filter(|&n| {
            let b = self.blocks[n as usize];
            cpu.tracker.version(b.page as usize) == b.version
        });
        let n = match known {
            Some(n) => n,
            None => match self.build(cpu, gpa, info.index) {
                Some(n) => {
                    self.index.insert(id, n);
                    n
                }
                None => return Ok(Next::Single),
            },
        };
        let b = self.blocks[n as usize];
        self.jumps[Self::jump_slot(linear)] = Jump {
            linear,
            key,
            generation: cpu.tlb.generation,
            block: b,
        };
        Ok(Next::Block(
            b,
            &self.ops[b.first as usize..][..b.count as usize],
        ))
    }

    /// Decodes the block at `gpa`; `None` if not even one instruction lies in the page.
    fn build(&mut self, cpu: &mut Cpu, gpa: u64, page: usize) -> Option<u32> {
        if self.ops.len() >= self.max_ops {
            self.ops.clear();
            self.blocks.clear();
            self.index.clear();
            for j in &mut self.jumps {
                j.key = u64::MAX;
            }
            self.flushes += 1;
        }
        let offset = (gpa & 0xfff) as usize;
        let mut buf = [0u8; 4096];
        let code = &mut buf[..4096 - offset];
        cpu.memory.read(gpa, code).ok()?;
        loop {
            let first = self.ops.len();
            let bytes = self.decode_ops(cpu, code);
            let count = self.ops.len() - first;
            if count == 0 {
                return None;
            }
            // Mark, then look again: what was read before the mark may have changed under it.
            let version = cpu.tracker.mark_code(page, offset, bytes);
            let mut again = [0u8; 4096];
            let again = &mut again[..bytes];
            cpu.memory.read(gpa, again).ok()?;
            if again == &code[..bytes] {
                let n = self.blocks.len() as u32;
                self.blocks.push(Block {
                    page: page as u32,
                    version,
                    first: first as u32,
                    count: count as u32,
                    bytes: bytes as u32,
                });
                self.decoded += count as u64;
                return Some(n);
            }
            self.ops.truncate(first);
            cpu.memory.read(gpa, code).ok()?;
        }
    }

    /// Appends the ops of one block; gives its length in bytes.
    fn decode_ops(&mut self, cpu: &mut Cpu, code: &[u8]) -> usize {
        let options = decode::options(cpu);
        let bits = cpu.bits;
        let mut at = 0;
        // The last op whose flags nobody has seen yet, and its handler if nobody ever does.
        let mut unseen: Option<(usize, Handler)> = None;
        for pos in 0..MAX_BLOCK {
            let rest = &code[at..code.len().min(at + MAX_LEN)];
            let i = match decode::decode(rest, bits, options) {
                Ok(i) => i,
                // The page ends here, or the instruction is too long: the slow path says.
                Err(DecoderError::NoMoreBytes) => break,
                // #UD, which is an op like any other.
                Err(_) => {
                    if pos == 0 {
                        return 0;
                    }
                    break;
                }
            };
            let (mut op, end) = decode::lower(cpu, &i, bits);
            op.pos = pos as u8;
            let here = self.ops.len();
            let before = flags_before(&i);
            if before == FlagsBefore::Dead
                && let Some((writer, quiet)) = unseen
            {
                self.ops[writer].run = quiet;
                for stale in &mut self.ops[writer..here] {
                    stale.prefix.0 |= Prefix::STALE;
                }
            }
            if before != FlagsBefore::Kept {
                unseen = without_flags(&i, &op).map(|quiet| (here, quiet));
            }
            self.ops.push(op);
            at += i.len();
            if end {
                break;
            }
        }
        at
    }
}

impl Lower {
    /// Completes the op with a handler.
    pub(crate) fn plain(op: &mut Op, run: crate::Handler) -> Self {
        op.run = run;
        Self::Plain
    }

    /// Completes the op with a handler that ends its block.
    pub(crate) fn end(op: &mut Op, run: crate::Handler) -> Self {
        op.run = run;
        Self::End
    }
}
