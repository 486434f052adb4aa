//! How a device tells its driver of used buffers and of changes of configuration.

use crate::pci::Msix;
use mimeo_bus::IrqLine;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// No vector (4.1.4.3).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// ISR status bits (4.1.4.5, 4.2.2).
const USED: u8 = 1;
const CONFIG: u8 = 2;

struct State {
    isr: u8,
    generation: u8,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    /// INTx is disabled by the command register.
    intx_off: bool,
    level: bool,
}

/// A device's interrupts: by MSI-X where it has that and it is enabled, by its line otherwise.
///
/// Lock: after the device's; held while the line or MSI-X is driven.
pub struct Interrupts {
    state: Mutex<State>,
    broken: AtomicBool,
    msix: Option<Arc<Msix>>,
    line: IrqLine,
}

impl Interrupts {
    /// For a device with `queues` queues. `msix`: over PCI.
    pub fn new(queues: usize, line: IrqLine, msix: Option<Arc<Msix>>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                isr: 0,
                generation: 0,
                config_vector: NO_VECTOR,
                queue_vectors: vec![NO_VECTOR; queues],
                intx_off: false,
                level: false,
            }),
            broken: AtomicBool::new(false),
            msix,
            line,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, state: &mut State) {
        let level = state.isr != 0 && !state.intx_off;
        if level != state.level {
            state.level = level;
            self.line.set(level);
        }
    }

    fn signal(&self, bit: u8, vector: impl Fn(&State) -> u16) {
        let mut state = self.lock();
        match self.msix.as_ref().filter(|m| m.enabled()) {
            Some(msix) => msix.trigger(vector(&state)),
            None => {
                state.isr |= bit;
                self.update(&mut state);
            }
        }
    }

    /// Buffers of `queue` were used.
    pub fn used(&self, queue: usize) {
        self.signal(USED, |s| {
            s.queue_vectors.get(queue).copied().unwrap_or(NO_VECTOR)
        });
    }

    /// The configuration has changed.
    pub fn config_changed(&self) {
        {
            let mut state = self.lock();
            state.generation = state.generation.wrapping_add(1);
        }
        self.signal(CONFIG, |s| s.config_vector);
    }

    /// The driver has broken the rules: the device wants a reset (2.1.2).
    pub fn needs_reset(&self) {
        if !self.broken.swap(true, Ordering::SeqCst) {
            self.config_changed();
        }
    }

    /// Whether the device wants a reset.
    #[must_use]
    pub fn broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    pub(super) fn generation(&self) -> u8 {
        self.lock().generation
    }

    /// ISR status.
    pub(super) fn isr(&self) -> u8 {
        self.lock().isr
    }

    /// Clears bits of the ISR status; gives what it was.
    pub(super) fn acknowledge(&self, bits: u8) -> u8 {
        let mut state = self.lock();
        let was = state.isr;
        state.isr &= !bits;
        self.update(&mut state);
        was
    }

    pub(super) fn set_intx_off(&self, off: bool) {
        let mut state = self.lock();
        state.intx_off = off;
        self.update(&mut state);
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.lock().config_vector
    }

    pub(super) fn queue_vector(&self, queue: usize) -> u16 {
        let state = self.lock();
        state.queue_vectors.get(queue).copied().unwrap_or(NO_VECTOR)
    }

    /// A vector that exists, or none.
    fn existing(&self, vector: u16) -> u16 {
        let vectors = self.msix.as_ref().map_or(0, |m| m.vectors());
        if vector < vectors { vector } else { NO_VECTOR }
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.lock().config_vector = self.existing(vector);
    }

    pub(super) fn set_queue_vector(&self, queue: usize, vector: u16) {
        let vector = self.existing(vector);
        if let Some(v) = self.lock().queue_vectors.get_mut(queue) {
            *v = vector;
        }
    }

    /// The device was reset.
    pub(super) fn reset(&self) {
        let mut state = self.lock();
        state.isr = 0;
        state.config_vector = NO_VECTOR;
        state.queue_vectors.fill(NO_VECTOR);
        self.broken.store(false, Ordering::SeqCst);
        self.update(&mut state);
    }

    /// (ISR, broken): what is saved besides the vectors.
    pub(super) fn save(&self) -> (u8, bool) {
        (self.isr(), self.broken())
    }

    /// Puts back what [`Self::save`] gave, without an edge: the level is part of what the interrupt
    /// controller saves.
    pub(super) fn restore(&self, (isr, broken): (u8, bool), intx_off: bool) {
        let mut state = self.lock();
        state.isr = isr & (USED | CONFIG);
        state.intx_off = intx_off;
        state.level = state.isr != 0 && !intx_off;
        self.broken.store(broken, Ordering::SeqCst);
    }
}
