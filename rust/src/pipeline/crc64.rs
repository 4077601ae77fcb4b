//! CRC-64 as tar-split keeps it of each file: ISO's polynomial, bits reversed.

/// x⁶⁴ + x⁴ + x³ + x + 1.
const POLYNOMIAL: u64 = 0xd800_0000_0000_0000;
/// Bytes that are taken in at once, each by a table of its own.
const SLICES: usize = 8;
static TABLES: [[u64; 256]; SLICES] = tables();

const fn tables() -> [[u64; 256]; SLICES] {
    let mut tables = [[0; 256]; SLICES];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ POLYNOMIAL } else { sum >> 1 };
            bit += 1;
        }
        tables[0][byte] = sum;
        byte += 1;
    }
    let mut slice = 1;
    while slice < SLICES {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[slice - 1][byte];
            tables[slice][byte] = tables[0][(before & 0xff) as usize] ^ before >> 8;
            byte += 1;
        }
        slice += 1;
    }
    tables
}

/// A sum that grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Crc64(u64);

impl Crc64 {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        let mut sum = !self.0;
        let (words, rest) = bytes.as_chunks::<SLICES>();
        for word in words {
            let mixed = (sum ^ u64::from_le_bytes(*word)).to_le_bytes();
            sum = 0;
            for (table, byte) in TABLES.iter().rev().zip(mixed) {
                sum ^= table[usize::from(byte)];
            }
        }
        for &byte in rest {
            sum = TABLES[0][usize::from(sum.to_le_bytes()[0] ^ byte)] ^ sum >> 8;
        }
        self.0 = !sum;
    }

    pub(super) fn value(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(pieces: &[&[u8]]) -> u64 {
        let mut crc = Crc64::default();
        for piece in pieces {
            crc.update(piece);
        }
        crc.value()
    }

    /// The sums that the tests of Go's hash/crc64 have.
    #[test]
    fn sums_are_those_of_go() {
        let known: [(&str, u64); 5] = [
            ("", 0),
            ("a", 0x3420_0000_0000_0000),
            ("abc", 0x3776_c420_0000_0000),
            ("Discard medicine more than two years old.", 0x8ec0_e7c8_35bf_9cdf),
            ("He who has a shady past knows that nice guys finish last.", 0xc7db_1759_e2be_5ab4),
        ];
        for (text, expected) in known {
            assert_eq!(sum(&[text.as_bytes()]), expected, "{text}: {:016x}", sum(&[text.as_bytes()]));
        }
    }

    #[test]
    fn pieces_make_no_difference() {
        let data: Vec<u8> = (0..1000u32).map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
        for cut in [0, 1, 7, 8, 9, 500, 999, 1000] {
            assert_eq!(sum(&[&data[..cut], &data[cut..]]), sum(&[&data]), "{cut}");
        }
    }
}
