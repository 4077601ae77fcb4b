//! Layer archives: headers, apply, whiteouts, the layer index.
