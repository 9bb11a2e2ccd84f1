//! Whole numbers of few bits in bytes, the first in the lowest bits.

/// Bits of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bits {
    /// 0 to 3.
    Two,
    /// 0 to 15.
    Four,
    /// 0 to 255.
    Eight,
}

impl Bits {
    /// So many bits, where numbers of them never lie in two bytes.
    pub fn of(bits: i64) -> Option<Bits> {
        [Bits::Two, Bits::Four, Bits::Eight].into_iter().find(|b| b.width() as i64 == bits)
    }

    /// How many.
    pub fn width(self) -> usize {
        match self {
            Bits::Two => 2,
            Bits::Four => 4,
            Bits::Eight => 8,
        }
    }

    /// The largest number.
    pub fn most(self) -> u8 {
        (0xffu16 >> (8 - self.width())) as u8
    }

    /// The number in the middle, half of the numbers below it.
    pub fn middle(self) -> u8 {
        self.most() / 2 + 1
    }

    /// Numbers in a byte.
    pub fn per_byte(self) -> usize {
        8 / self.width()
    }

    /// Bytes that hold so many numbers.
    pub fn bytes(self, count: usize) -> usize {
        count.div_ceil(self.per_byte())
    }

    /// Numbers of `packed`, as many as `out` holds.
    pub fn unpack(self, packed: &[u8], out: &mut [u8]) {
        let (width, most) = (self.width(), self.most());
        for (byte, out) in packed.iter().zip(out.chunks_mut(self.per_byte())) {
            out.iter_mut().enumerate().for_each(|(i, q)| *q = byte >> (i * width) & most);
        }
    }

    /// Bytes of `numbers`; what is left of the last byte is zero.
    pub fn pack(self, numbers: &[u8], out: &mut [u8]) {
        let width = self.width();
        for (numbers, byte) in numbers.chunks(self.per_byte()).zip(out) {
            *byte = numbers.iter().enumerate().fold(0, |b, (i, q)| b | q << (i * width));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_numbers_come_back() {
        assert_eq!(Bits::of(3), None);
        for (bits, first) in [(Bits::Two, 0b1101_0010), (Bits::Four, 0x12), (Bits::Eight, 2)] {
            let numbers: Vec<u8> =
                [2u8, 0, 1, 3, 2, 1, 3].map(|q| if bits == Bits::Four { q.max(1) } else { q }).to_vec();
            let mut packed = vec![0xee; bits.bytes(7)];
            bits.pack(&numbers, &mut packed);
            assert_eq!(packed[0], first, "{bits:?}");
            let mut back = vec![0; 7];
            bits.unpack(&packed, &mut back);
            assert_eq!(back, numbers);
            assert_eq!(u32::from(bits.most()) + 1, 1 << bits.width());
            assert_eq!(u32::from(bits.middle()), 1 << (bits.width() - 1));
        }
    }
}
