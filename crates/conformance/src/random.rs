//! A small deterministic generator (xorshift64*) and interesting values.

/// The generator.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut r = Self(seed ^ 0x9e37_79b9_7f4a_7c15);
        if r.0 == 0 {
            r.0 = 1;
        }
        for _ in 0..4 {
            r.next();
        }
        r
    }

    /// 64 random bits.
    #[expect(clippy::should_implement_trait, reason = "not an iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n` (n > 0).
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of a list.
    pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }

    /// An integer: often near the edges of the widths.
    pub fn integer(&mut self) -> u64 {
        match self.below(8) {
            0 => self.below(4),
            1 => u64::MAX - self.below(3),
            2 => {
                let bit = self.pick(&[7, 8, 15, 16, 31, 32, 63]);
                (1_u64 << bit).wrapping_add(self.below(3)).wrapping_sub(1)
            }
            3 => self.below(256),
            4 => self.next() & 0xffff_ffff,
            _ => self.next(),
        }
    }

    /// A single-precision bit pattern: numbers near 1 and all special classes.
    pub fn single(&mut self) -> u32 {
        let sign = (self.next() as u32) & 0x8000_0000;
        let r = self.next() as u32;
        sign | match self.below(12) {
            0 => 0,
            1 => 0x7f80_0000,
            2 => 0x7fc0_0000 | r & 0x3f_ffff,
            3 => 0x7f80_0000 | (r & 0x3f_ffff).max(1),
            4 => r & 0x7f_ffff,
            5 => 0x7f7f_ffff - (r & 3),
            6 => 0x0080_0000 + (r & 3),
            7 => 0x3f80_0000,
            8 => r & 0x7fff_ffff,
            _ => 0x3f00_0000 + (r & 0x01ff_ffff),
        }
    }

    /// A double-precision bit pattern.
    pub fn double(&mut self) -> u64 {
        let sign = self.next() & 1 << 63;
        let r = self.next();
        sign | match self.below(12) {
            0 => 0,
            1 => 0x7ff0 << 48,
            2 => 0x7ff8 << 48 | r & 0x7_ffff_ffff_ffff,
            3 => 0x7ff0 << 48 | (r & 0x7_ffff_ffff_ffff).max(1),
            4 => r & 0xf_ffff_ffff_ffff,
            5 => 0x7fef_ffff_ffff_ffff - (r & 3),
            6 => (1 << 52) + (r & 3),
            7 => 0x3ff0 << 48,
            8 => r & (u64::MAX >> 1),
            9 => f64::from(r as i32).abs().to_bits(),
            _ => (0x3fe0 << 48) + (r & 0x3f_ffff_ffff_ffff),
        }
    }

    /// An 80-bit extended bit pattern, unsupported encodings among them.
    pub fn extended(&mut self) -> u128 {
        let sign = u128::from(self.next() & 1) << 79;
        let r = self.next();
        let (exponent, mantissa) = match self.below(12) {
            0 => (0, 0),
            1 => (0x7fff, 1 << 63),
            2 => (0x7fff, 3 << 62 | r >> 2),
            3 => (0x7fff, 1 << 63 | (r >> 2).max(1)),
            4 => (0, r >> 1),
            5 => (r as u16 & 0x7fff, r),
            6 => (0x3fff, 1 << 63),
            7 => (0x3fff + (r as u16 & 63), 1 << 63 | r << 20),
            8 => (0x7ffe - (r as u16 & 1), 1 << 63 | r),
            _ => (0x3ff0 + (r as u16 & 31), 1 << 63 | r),
        };
        sign | u128::from(exponent) << 64 | u128::from(mantissa)
    }

    /// A vector quadword: integers, floats of both widths.
    pub fn vector_quad(&mut self) -> u64 {
        match self.below(4) {
            0 => self.integer(),
            1 => self.double(),
            2 => u64::from(self.single()) | u64::from(self.single()) << 32,
            _ => self.next(),
        }
    }
}
