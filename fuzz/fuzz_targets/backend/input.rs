//! The fuzzer's bytes as a source of choices. Reads past their end return zeroes.

/// The bytes that are left.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        self.number::<1>() as u8
    }

    pub fn u16(&mut self) -> u16 {
        self.number::<2>() as u16
    }

    pub fn u32(&mut self) -> u32 {
        self.number::<4>() as u32
    }

    pub fn u64(&mut self) -> u64 {
        self.number::<8>()
    }

    /// Mostly small, and sometimes a number at which arithmetic overflows.
    pub fn offset(&mut self) -> u64 {
        match self.byte() {
            0..200 => u64::from(self.u16()),
            200..210 => i64::MAX as u64,
            210..220 => u64::MAX,
            220..230 => u64::MAX - u64::from(self.byte()),
            _ => self.u64(),
        }
    }

    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn number<const N: usize>(&mut self) -> u64 {
        let mut number = 0;
        for byte in self.bytes(N) {
            number = number << 8 | u64::from(*byte);
        }
        number
    }
}
