//! Heads of HTTP answers, by `httparse`. The socket, and what a head means, are Python's.

use httparse::{ParserConfig, Response, Status};
use pyo3::prelude::*;

use crate::error::Error;

/// Fields of one head that are read; more is no registry's answer. Python's and Go's clients stop near here too.
const FIELDS_MAX: usize = 128;

/// The head of an answer: its status line and its fields.
#[pyclass(frozen, get_all, module = "pyctrd._core", name = "ResponseHead")]
struct ResponseHead {
    /// Bytes that it takes, with the empty line at its end.
    size: usize,
    /// 1 for HTTP/1.1, 0 for HTTP/1.0.
    minor_version: u8,
    status: u16,
    /// What stands behind the status: for people.
    reason: String,
    /// Names in lower case and values, in their order.
    fields: Vec<(String, String)>,
}

/// Reads the head that stands at the front of `content`; None where its end has not come yet.
///
/// As strict as `httparse` is by default: no white space before a colon, no value that goes on in another line, no NUL.
#[pyfunction]
fn parse_response_head(content: &[u8]) -> PyResult<Option<ResponseHead>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = Response::new(&mut fields);
    let parsed = ParserConfig::default().parse_response(&mut head, content);
    let invalid = |reason: String| Error::Invalid { field: "answer", value: String::new(), reason };
    let Status::Complete(size) = parsed.map_err(|e| invalid(e.to_string()))? else { return Ok(None) };
    let (Some(minor_version), Some(status)) = (head.version, head.code) else {
        return Err(invalid("no status".to_owned()).into());
    };
    let fields =
        head.headers.iter().map(|field| (field.name.to_ascii_lowercase(), latin1(field.value))).collect();
    let reason = head.reason.unwrap_or_default().to_owned();
    Ok(Some(ResponseHead { size, minor_version, status, reason, fields }))
}

/// Octets beyond ASCII have no meaning that is agreed on (RFC 9110, section 5.5): each becomes a character, so that
/// none is lost and every value is text.
fn latin1(value: &[u8]) -> String {
    value.iter().copied().map(char::from).collect()
}

/// Adds this room's names to the module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<ResponseHead>()?;
    module.add_function(wrap_pyfunction!(parse_response_head, module)?)
}
