//! How values are shown: units, tables, templates, and text that may be hostile.

pub mod inert;
pub mod moment;
pub mod table;
pub mod template;
pub mod units;
