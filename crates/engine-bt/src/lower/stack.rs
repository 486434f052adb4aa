//! PUSH, POP and LEAVE with 64-bit operands (SDM vol. 1, 6.2). The store or load comes first, the
//! stack pointer last.

use super::Lower;
use super::mem::{Ea, Want};
use crate::ctx::{E, GSP, HOST, T, at, field, in_memory, slot};
use crate::decode::{Insn, memory};
use crate::emit::Mem;
use iced_x86::Code;

const PUSH: Want = Want {
    size: 8,
    write: true,
    aligned: false,
};
const LOAD: Want = Want {
    size: 8,
    write: false,
    aligned: false,
};

impl Lower<'_> {
    /// Lowers a stack instruction.
    pub(super) fn stack(&mut self, insn: &Insn) {
        let i = &insn.i;
        match i.code() {
            Code::Pushq_imm8 | Code::Pushq_imm32 => {
                self.push_constant(i.immediate(0));
            }
            Code::Pop_r64 => self.pop(i.op0_register().number()),
            Code::Leaveq => self.leave_frame(),
            _ if memory(i) => {
                let ea = self.effective_address(i);
                let m = self.lookup(ea, LOAD);
                self.hot.load(T, m);
                self.hot.store(field(at!(scratch)), T);
                self.push_scratch();
            }
            _ => self.push_register(i.op0_register().number()),
        }
    }

    /// E = RSP - 8, looked up for writing.
    fn new_top(&mut self) -> Mem {
        self.hot.lea(E, Mem::base(GSP, -8));
        self.lookup(
            Ea {
                reg: E,
                konst: None,
            },
            PUSH,
        )
    }

    fn push_register(&mut self, n: usize) {
        let m = self.new_top();
        if in_memory(n) {
            self.hot.lea(E, m);
            self.hot.load(T, slot(n));
            self.hot.store(Mem::base(E, 0), T);
            self.hot.lea(GSP, Mem::base(GSP, -8));
        } else {
            self.hot.store(m, HOST[n]);
            self.hot.mov_rr(GSP, E);
        }
        self.stack_moved(-8);
    }

    /// Pushes a constant (an immediate, a return address).
    pub(super) fn push_constant(&mut self, v: u64) {
        let m = self.new_top();
        if let Ok(imm) = i32::try_from(v as i64) {
            self.hot.store_imm64(m, imm);
            self.hot.mov_rr(GSP, E);
        } else {
            self.hot.lea(E, m);
            self.hot.mov_imm(T, v);
            self.hot.store(Mem::base(E, 0), T);
            self.hot.lea(GSP, Mem::base(GSP, -8));
        }
        self.stack_moved(-8);
    }

    /// Pushes what is in the scratch word.
    fn push_scratch(&mut self) {
        let m = self.new_top();
        self.hot.lea(E, m);
        self.hot.load(T, field(at!(scratch)));
        self.hot.store(Mem::base(E, 0), T);
        self.hot.lea(GSP, Mem::base(GSP, -8));
        self.stack_moved(-8);
    }

    /// The operand at the top of the stack.
    pub(super) fn top(&mut self) -> Mem {
        self.lookup(
            Ea {
                reg: GSP,
                konst: None,
            },
            LOAD,
        )
    }

    fn pop(&mut self, n: usize) {
        let m = self.top();
        if n == 4 {
            self.hot.load(GSP, m);
            return;
        }
        if in_memory(n) {
            self.hot.load(T, m);
            self.hot.store(slot(n), T);
        } else {
            self.hot.load(HOST[n], m);
        }
        self.hot.lea(GSP, Mem::base(GSP, 8));
        self.stack_moved(8);
    }

    fn leave_frame(&mut self) {
        const RBP: u8 = HOST[5];
        let m = self.lookup(
            Ea {
                reg: RBP,
                konst: None,
            },
            LOAD,
        );
        self.hot.load(T, m);
        self.hot.lea(GSP, Mem::base(RBP, 8));
        self.hot.mov_rr(RBP, T);
    }
}
