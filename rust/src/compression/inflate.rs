//! Raw deflate data (RFC 1951), and the checksum of what it holds: by ISA-L where this was built with it, else by zlib-rs.
//!
//! Both are the fastest of their kind: ISA-L's inner loops are assembly, which takes an assembler to build, and need a third
//! less time on layers. Which it is shows nowhere but in the time.

#[cfg(feature = "isal")]
pub(super) use self::isal::Inflate;
#[cfg(not(feature = "isal"))]
pub(super) use self::zlib::Inflate;

/// Which of the two this was built with.
pub(super) const NAME: &str = if cfg!(feature = "isal") { "isa-l" } else { "zlib-rs" };

/// What one call did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inflated {
    pub(super) consumed: usize,
    pub(super) produced: usize,
    /// The data is whole.
    pub(super) ended: bool,
}

/// Bytes behind the data that were read with its last ones.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ReadAhead {
    bytes: [u8; 8],
    length: usize,
}

impl ReadAhead {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

#[cfg(not(feature = "isal"))]
mod zlib {
    use flate2::{Crc, Decompress, FlushDecompress, Status};

    use super::{Inflated, ReadAhead};

    pub(in super::super) struct Inflate {
        inflate: Decompress,
        sum: Crc,
    }

    impl Inflate {
        pub(in super::super) fn new() -> Self {
            Self { inflate: Decompress::new(false), sum: Crc::new() }
        }

        pub(in super::super) fn reset(&mut self) {
            self.inflate.reset(false);
            self.sum.reset();
        }

        pub(in super::super) fn decode(
            &mut self,
            input: &[u8],
            output: &mut [u8],
        ) -> Result<Inflated, String> {
            let (before_in, before_out) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self.inflate.decompress(input, output, FlushDecompress::None);
            let ended = status.map_err(|e| e.to_string())? == Status::StreamEnd;
            let consumed = usize::try_from(self.inflate.total_in() - before_in).unwrap_or(0);
            let produced = usize::try_from(self.inflate.total_out() - before_out).unwrap_or(0);
            self.sum.update(&output[..produced]);
            Ok(Inflated { consumed, produced, ended })
        }

        /// CRC-32 of all that came out, and its length modulo 2^32.
        pub(in super::super) fn sum(&self) -> (u32, u32) {
            (self.sum.sum(), self.sum.amount())
        }

        #[expect(clippy::unused_self, reason = "the other one reads ahead")]
        pub(in super::super) fn read_ahead(&self) -> ReadAhead {
            ReadAhead::default()
        }
    }
}

#[cfg(feature = "isal")]
mod isal {
    use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};

    use isal_sys::igzip_lib::{
        ISAL_GZIP_NO_HDR, ISAL_INVALID_BLOCK, ISAL_INVALID_LOOKBACK, ISAL_INVALID_SYMBOL, inflate_state,
        isal_block_state_ISAL_BLOCK_FINISH, isal_inflate, isal_inflate_init, isal_inflate_reset,
    };

    use super::{Inflated, ReadAhead};

    pub(in super::super) struct Inflate(Box<inflate_state>);

    #[expect(unsafe_code, reason = "the C library's state has pointers in it")]
    // SAFETY: its pointers lead to nothing between two calls: each sets them to what its caller lends.
    unsafe impl Send for Inflate {}

    impl Inflate {
        #[expect(unsafe_code, reason = "a C structure")]
        #[expect(clippy::cast_ptr_alignment, reason = "the allocator aligns as the layout says")]
        pub(in super::super) fn new() -> Self {
            let layout = Layout::new::<inflate_state>();
            // SAFETY: the layout is that of the type, which is not empty; zeros are integers and null pointers, all that is in
            // it; and a box frees what was allocated with the layout of its type. On the stack it would take 85 KiB.
            let mut state = unsafe {
                let made = alloc_zeroed(layout).cast::<inflate_state>();
                if made.is_null() {
                    handle_alloc_error(layout);
                }
                Box::from_raw(made)
            };
            // SAFETY: it writes to the state alone.
            unsafe { isal_inflate_init(&raw mut *state) };
            // The sum is kept, and header and trailer are ours.
            state.crc_flag = ISAL_GZIP_NO_HDR;
            Self(state)
        }

        #[expect(unsafe_code, reason = "a C function")]
        pub(in super::super) fn reset(&mut self) {
            // SAFETY: it writes to the state alone, and leaves what the sum is of.
            unsafe { isal_inflate_reset(&raw mut *self.0) };
        }

        #[expect(unsafe_code, reason = "a C function")]
        pub(in super::super) fn decode(
            &mut self,
            input: &[u8],
            output: &mut [u8],
        ) -> Result<Inflated, String> {
            let state = &mut *self.0;
            // A longer slice is taken in with the next call.
            let (given, room) = (most(input.len()), most(output.len()));
            state.next_in = input.as_ptr().cast_mut();
            state.avail_in = given;
            state.next_out = output.as_mut_ptr();
            state.avail_out = room;
            // SAFETY: it reads at most `avail_in` bytes of the input and writes none of them, whatever its type says, and writes
            // at most `avail_out` bytes of the output; both slices are at least so long and outlive the call. What came out
            // before and may be copied again is in the state.
            let told = unsafe { isal_inflate(&raw mut *state) };
            if told < 0 {
                return Err(match told {
                    ISAL_INVALID_BLOCK => "invalid block".to_owned(),
                    ISAL_INVALID_SYMBOL => "invalid symbol".to_owned(),
                    ISAL_INVALID_LOOKBACK => "invalid distance".to_owned(),
                    other => format!("error {other}"),
                });
            }
            Ok(Inflated {
                consumed: (given - state.avail_in) as usize,
                produced: (room - state.avail_out) as usize,
                ended: state.block_state == isal_block_state_ISAL_BLOCK_FINISH,
            })
        }

        /// CRC-32 of all that came out, and its length modulo 2^32.
        pub(in super::super) fn sum(&self) -> (u32, u32) {
            (self.0.crc, self.0.total_out)
        }

        /// After the end: of the last word that was read, the whole bytes that are not the data's.
        pub(in super::super) fn read_ahead(&self) -> ReadAhead {
            let bits = u32::try_from(self.0.read_in_length).unwrap_or(0);
            let rest = self.0.read_in.checked_shr(bits % 8).unwrap_or(0);
            ReadAhead { bytes: rest.to_le_bytes(), length: (bits / 8) as usize }
        }
    }

    fn most(length: usize) -> u32 {
        u32::try_from(length).unwrap_or(u32::MAX)
    }
}
