//! How answers look: models that programs read (JSON, YAML), and text for people made from the same models.

pub mod model;
pub mod status;
pub mod table;
pub mod units;

use serde::Serialize;

use crate::arguments::Format;
use crate::failure::Failure;
use crate::terminal::Screen;

/// Writes an answer: as data when asked for, else the text that `text` makes of it.
pub fn show<T: Serialize>(screen: &Screen, format: Format, answer: &T, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
    match format {
        Format::Table | Format::Wide => screen.text(&screen.here(&text(answer))),
        Format::Json => screen.data(&json(answer)?),
        Format::Yaml => screen.text(&yaml(answer)?),
    }
    Ok(())
}

fn json<T: Serialize>(answer: &T) -> Result<String, Failure> {
    serde_json::to_string_pretty(answer).map(|text| escaped(&text)).map_err(|e| unwritable(&e))
}

/// JSON lets some control characters stand as they are; on a terminal they would steer it.
fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if matches!(c, '\u{7f}'..='\u{9f}') { out.push_str(&format!("\\u{:04x}", u32::from(c))) } else { out.push(c) }
    }
    out
}

fn yaml<T: Serialize>(answer: &T) -> Result<String, Failure> {
    let text = serde_saphyr::to_string(answer).map_err(|e| unwritable(&e))?;
    Ok(if text.ends_with('\n') { text } else { format!("{text}\n") })
}

/// One answer a line, for streams that programs read.
pub fn json_line<T: Serialize>(answer: &T) -> Result<String, Failure> {
    serde_json::to_string(answer).map(|text| escaped(&text)).map_err(|e| unwritable(&e))
}

fn unwritable(error: &dyn std::error::Error) -> Failure {
    Failure::Malformed { what: "the answer".to_owned(), reason: error.to_string() }
}
