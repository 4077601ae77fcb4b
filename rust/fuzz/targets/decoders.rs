//! A decoder fed in pieces, and its output taken in pieces.

use pyctrd_core::compression::Decoder;

/// Enough to see every state, and no bomb.
const OUTPUT_MAX_BYTES: usize = 4 << 20;

/// Decodes; the output, or the error's words. None where there is more output than anybody wants.
pub fn decode(input: &[u8], piece: usize, window: usize) -> Option<Result<Vec<u8>, String>> {
    let (mut decoder, mut output) = (Decoder::default(), Vec::new());
    let mut buffer = vec![0; window];
    for mut left in input.chunks(piece) {
        loop {
            let step = match decoder.decode(left, &mut buffer) {
                Ok(step) => step,
                Err(error) => return Some(Err(error.to_string())),
            };
            assert!(step.consumed <= left.len() && step.produced <= window);
            output.extend_from_slice(&buffer[..step.produced]);
            left = &left[step.consumed..];
            if output.len() > OUTPUT_MAX_BYTES {
                return None;
            }
            if step.produced < window && left.is_empty() {
                break;
            }
            assert!(step.consumed > 0 || step.produced > 0, "no progress with {} bytes left", left.len());
        }
    }
    Some(decoder.finish().map(|()| output).map_err(|error| error.to_string()))
}

/// Any cut of input and output gives the same bytes, or an error too.
pub fn check(input: &[u8], mode: u8) {
    let whole = decode(input, input.len().max(1), 1 << 16);
    let pieces = decode(input, usize::from(mode) + 1, usize::from(mode >> 3) + 1);
    if let (Some(whole), Some(pieces)) = (whole, pieces) {
        assert_eq!(whole.is_ok(), pieces.is_ok(), "{whole:?} but in pieces {pieces:?}");
        if let (Ok(whole), Ok(pieces)) = (whole, pieces) {
            assert_eq!(whole, pieces);
        }
    }
}
