//! The XSAVE family (SDM vol. 1, chapter 13): state components in the standard and the compacted
//! format, the header's checks, the init optimisation.
//!
//! The modified optimisation of XSAVEOPT is an option of the processor (13.6) that is not taken.

use super::fxsave::{self, check_mxcsr, xmm_count};
use super::layout::{self, get32, get64};
use super::memory::misaligned;
use super::{check, xsave_registers};
use crate::{Access, Cpu, Exec, Handler, Op, Trap};
use iced_x86::Code;
use mimeo_arch_x86::cpuid::xcr0;
use mimeo_arch_x86::{Exception, Gpr};
use mimeo_isa_x86::Form;
use mimeo_vcpu::CpuIo;

const HEADER: usize = 512;
/// Legacy region and header.
const FIXED: usize = 576;
/// More than any area: legacy region, header, AVX and PKRU in the standard format.
const MAX: usize = 4096;
const COMPACT: u64 = 1 << 63;
const MXCSR_INIT: u32 = 0x1f80;
/// Components of the legacy region, before the header.
const LEGACY: u64 = xcr0::X87 | xcr0::SSE;
/// Components that follow the header.
const EXTENDED: [u32; 2] = [2, 9];

pub(super) fn handler(form: &Form) -> Option<Handler> {
    Some(match form.code {
        Code::Xsave_mem => save::<{ PLAIN }, false>,
        Code::Xsave64_mem => save::<{ PLAIN }, true>,
        Code::Xsaveopt_mem => save::<{ OPTIMISED }, false>,
        Code::Xsaveopt64_mem => save::<{ OPTIMISED }, true>,
        Code::Xsavec_mem => save::<{ COMPACTED }, false>,
        Code::Xsavec64_mem => save::<{ COMPACTED }, true>,
        Code::Xrstor_mem => restore::<false>,
        Code::Xrstor64_mem => restore::<true>,
        _ => xsave_registers::handler(form.code)?,
    })
}

const PLAIN: u8 = 0;
const OPTIMISED: u8 = 1;
const COMPACTED: u8 = 2;

/// EDX:EAX.
fn requested(cpu: &Cpu) -> u64 {
    cpu.gpr(Gpr::Rax) & 0xffff_ffff | cpu.gpr(Gpr::Rdx) << 32
}

/// XINUSE: components that are not in their initial configuration (13.6).
pub(super) fn in_use(cpu: &Cpu) -> u64 {
    let fp = &cpu.state.fp;
    let x87 = fp.fcw != 0x37f
        || fp.fsw | fp.fop | fp.fcs | fp.fds != 0
        || fp.ftw != 0
        || fp.fip | fp.fdp != 0
        || fp.st.iter().any(|st| *st != 0);
    let mut bits = 0;
    if x87 {
        bits |= xcr0::X87;
    }
    if fp.ymm.iter().any(|r| r[0] | r[1] != 0) {
        bits |= xcr0::SSE;
    }
    if fp.ymm.iter().any(|r| r[2] | r[3] != 0) {
        bits |= xcr0::AVX;
    }
    if cpu.state.pkru != 0 {
        bits |= xcr0::PKRU;
    }
    bits
}

/// Where each extended component of an area is.
fn offset(cpu: &Cpu, component: u32, compact: Option<u64>) -> Option<(usize, usize)> {
    let (size, standard) = cpu.model.xsave_component(component)?;
    let at = match compact {
        None => standard,
        Some(bits) => {
            // Components follow each other in the order of their bits; none asks for alignment.
            let before = EXTENDED
                .iter()
                .filter(|c| **c < component && bits >> **c & 1 != 0);
            let sizes = before.filter_map(|c| cpu.model.xsave_component(*c));
            FIXED as u32 + sizes.map(|(size, _)| size).sum::<u32>()
        }
    };
    let (at, size) = (at as usize, size as usize);
    (at + size <= MAX).then_some((at, size))
}

fn address(cpu: &Cpu, op: &Op, access: Access) -> Result<u64, Trap> {
    check::xsave(cpu)?;
    let linear = cpu.linear(op.seg, cpu.ea(op), FIXED, access)?;
    if linear & 63 != 0 {
        return Err(misaligned());
    }
    Ok(linear)
}

fn save<const KIND: u8, const WIDE: bool>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let linear = address(cpu, op, Access::Write)?;
    let wanted = requested(cpu) & cpu.state.xcr0;
    let mut used = in_use(cpu);
    if KIND == COMPACTED && cpu.state.fp.mxcsr != MXCSR_INIT {
        used |= xcr0::SSE;
    }
    let compact = (KIND == COMPACTED).then_some(wanted);
    let written = if KIND == PLAIN { wanted } else { wanted & used };
    let end = EXTENDED
        .iter()
        .filter(|c| wanted >> **c & 1 != 0)
        .filter_map(|c| offset(cpu, *c, compact))
        .map(|(at, size)| at + size)
        .fold(FIXED, usize::max);
    let mxcsr = if KIND == COMPACTED {
        written & xcr0::SSE
    } else {
        wanted & (xcr0::SSE | xcr0::AVX)
    };
    // The legacy region is touched only if something of it is written.
    let start = if written & LEGACY | mxcsr == 0 {
        HEADER
    } else {
        0
    };
    let from = linear.wrapping_add(start as u64);
    cpu.probe(op.seg, from, end - start, Access::Write)?;
    let mut header = [0; 16];
    cpu.read_bytes(op.seg, linear.wrapping_add(HEADER as u64), &mut header, io)?;
    let mut area = Area {
        cpu,
        seg: op.seg,
        linear,
        bytes: [0; MAX],
    };
    if written & xcr0::X87 != 0 {
        fxsave::put_x87(area.cpu, WIDE, &mut area.bytes);
        area.write(0, 24, io)?;
        area.write(32, 160, io)?;
    }
    if mxcsr != 0 {
        fxsave::put_mxcsr(area.cpu, &mut area.bytes);
        area.write(24, 32, io)?;
    }
    if written & xcr0::SSE != 0 {
        fxsave::put_xmm(area.cpu, &mut area.bytes);
        area.write(160, 160 + 16 * xmm_count(area.cpu), io)?;
    }
    for component in EXTENDED.iter().filter(|c| written >> **c & 1 != 0) {
        area.put_extended(*component, compact, io)?;
    }
    let old = get64(&header, 0);
    let bv = if KIND == COMPACTED {
        wanted & used
    } else {
        old & !wanted | wanted & used
    };
    layout::put(&mut area.bytes, HEADER, &bv.to_le_bytes());
    if KIND == COMPACTED {
        layout::put(
            &mut area.bytes,
            HEADER + 8,
            &(wanted | COMPACT).to_le_bytes(),
        );
        area.write(HEADER, HEADER + 16, io)
    } else {
        area.write(HEADER, HEADER + 8, io)
    }
}

/// An area being written: an image, copied out part by part. The whole range has been probed.
struct Area<'a> {
    cpu: &'a mut Cpu,
    seg: u8,
    linear: u64,
    bytes: [u8; MAX],
}

impl Area<'_> {
    fn write(&mut self, from: usize, to: usize, io: &mut dyn CpuIo) -> Exec {
        let linear = self.linear.wrapping_add(from as u64);
        self.cpu
            .write_bytes(self.seg, linear, &self.bytes[from..to], io)
    }

    fn put_extended(&mut self, component: u32, compact: Option<u64>, io: &mut dyn CpuIo) -> Exec {
        let Some((at, size)) = offset(self.cpu, component, compact) else {
            return Ok(());
        };
        let mut len = size;
        if 1 << component == xcr0::AVX {
            len = 16 * xmm_count(self.cpu);
            for (n, r) in self.cpu.state.fp.ymm.iter().enumerate() {
                layout::put(&mut self.bytes, at + 16 * n, &r[2].to_le_bytes());
                layout::put(&mut self.bytes, at + 16 * n + 8, &r[3].to_le_bytes());
            }
        } else {
            let pkru = u64::from(self.cpu.state.pkru);
            layout::put(&mut self.bytes, at, &pkru.to_le_bytes());
        }
        self.write(at, at + len, io)
    }
}

/// #GP(0) for a header that the processor does not accept (13.8); gives XSTATE_BV and, in the
/// compacted format, the components that have room.
fn check_header(cpu: &Cpu, header: &[u8; 64]) -> Result<(u64, Option<u64>), Trap> {
    let (bv, compact) = (get64(header, 0), get64(header, 8));
    let zero = |from: usize, to: usize| header[from..to].iter().all(|b| *b == 0);
    let enabled = cpu.state.xcr0;
    let good = if compact & COMPACT == 0 {
        bv & !enabled == 0 && zero(8, 24)
    } else {
        let room = compact & !COMPACT;
        room & !enabled == 0
            && bv & !room == 0
            && zero(16, 64)
            && cpu.model.has(mimeo_arch_x86::cpuid::Feature::Xsavec)
    };
    if !good {
        return Err(Exception::gp(0).into());
    }
    Ok((bv, (compact & COMPACT != 0).then_some(compact & !COMPACT)))
}

fn restore<const WIDE: bool>(cpu: &mut Cpu, op: &Op, io: &mut dyn CpuIo) -> Exec {
    let linear = address(cpu, op, Access::Read)?;
    let wanted = requested(cpu) & cpu.state.xcr0;
    let mut bytes = [0; MAX];
    let mut header = [0; FIXED - HEADER];
    cpu.read_bytes(op.seg, linear.wrapping_add(HEADER as u64), &mut header, io)?;
    let (bv, compact) = check_header(cpu, &header)?;
    let loaded = wanted & bv;
    // The legacy region is touched only if something of it was asked for, be it initialised.
    let mxcsr_wanted = compact.is_none() && wanted & (xcr0::SSE | xcr0::AVX) != 0;
    if wanted & LEGACY != 0 || mxcsr_wanted {
        cpu.read_bytes(op.seg, linear, &mut bytes[..HEADER], io)?;
    }
    for component in EXTENDED.iter().filter(|c| loaded >> **c & 1 != 0) {
        if let Some((at, size)) = offset(cpu, *component, compact) {
            let linear = linear.wrapping_add(at as u64);
            cpu.read_bytes(op.seg, linear, &mut bytes[at..at + size], io)?;
        }
    }
    // MXCSR belongs to SSE and AVX in the standard format, whatever XSTATE_BV says; to SSE alone
    // in the compacted one (13.8.1 and 13.8.2).
    let mxcsr = match compact {
        None if mxcsr_wanted => Some(get32(&bytes, 24)),
        Some(_) if loaded & xcr0::SSE != 0 => Some(get32(&bytes, 24)),
        Some(_) if wanted & xcr0::SSE != 0 => Some(MXCSR_INIT),
        _ => None,
    };
    if let Some(mxcsr) = mxcsr {
        check_mxcsr(mxcsr)?;
        cpu.state.fp.mxcsr = mxcsr;
    }
    let image = Image { bytes, compact };
    load_components::<WIDE>(cpu, &image, wanted, loaded);
    Ok(())
}

struct Image {
    bytes: [u8; MAX],
    compact: Option<u64>,
}

/// Loads the components of `loaded` and initialises the others of `wanted`. Nothing here faults.
fn load_components<const WIDE: bool>(cpu: &mut Cpu, image: &Image, wanted: u64, loaded: u64) {
    let count = xmm_count(cpu);
    if loaded & xcr0::X87 != 0 {
        fxsave::take_x87(cpu, WIDE, &image.bytes);
    } else if wanted & xcr0::X87 != 0 {
        layout::initialise(&mut cpu.state.fp);
        cpu.state.fp.st = [0; 8];
    }
    if loaded & xcr0::SSE != 0 {
        fxsave::take_xmm(cpu, &image.bytes);
    } else if wanted & xcr0::SSE != 0 {
        for r in &mut cpu.state.fp.ymm[..count] {
            (r[0], r[1]) = (0, 0);
        }
    }
    for component in EXTENDED.iter().filter(|c| wanted >> **c & 1 != 0) {
        let at = offset(cpu, *component, image.compact)
            .filter(|_| loaded >> *component & 1 != 0)
            .map(|(at, _)| at);
        if 1 << component == xcr0::AVX {
            for (n, r) in cpu.state.fp.ymm[..count].iter_mut().enumerate() {
                let quad = |half| at.map_or(0, |at| get64(&image.bytes, at + 16 * n + half));
                (r[2], r[3]) = (quad(0), quad(8));
            }
        } else {
            cpu.state.pkru = at.map_or(0, |at| get32(&image.bytes, at));
            cpu.refresh();
        }
    }
}
