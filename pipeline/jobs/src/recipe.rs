//! Recipes: what is made of a video. YAML in `pipeline/recipes/`, validated here and resolved into the plan, so that
//! nothing downstream trusts anything else.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_saphyr::Spanned;

/// Why a recipe cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// There is no recipe of that name.
    #[error("there is no recipe {name:?}; there are: {known}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// The file says something that is not allowed.
    #[error("{file}:{line}: {problem}")]
    Invalid {
        /// The file.
        file: String,
        /// The line, from 1.
        line: u64,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// The recipe folder or file cannot be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// The path.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
}

/// A recipe with every setting resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name, the file's without `.yaml`.
    pub name: String,
    /// One sentence.
    pub summary: String,
    /// What is made, at least one.
    pub outputs: Vec<Output>,
}

/// One output of a recipe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Output {
    /// The video again, with another size or codec; MP4.
    Transcode {
        /// File name of the output.
        name: String,
        /// Height in pixels after rotation, even; `null`: the source's, rounded down to even. Never enlarged.
        height: Option<u32>,
        /// What is done to the picture.
        effect: Effect,
        /// The video's settings.
        video: VideoSettings,
        /// The audio's settings.
        audio: AudioSettings,
    },
    /// One JPEG with evenly spaced frames.
    ContactSheet {
        /// File name of the output.
        name: String,
        /// Tiles in a row.
        columns: u32,
        /// Rows of tiles.
        rows: u32,
        /// Width of a tile, pixels, even.
        tile_width: u32,
    },
}

impl Output {
    /// File name of the output.
    pub fn name(&self) -> &str {
        match self {
            Self::Transcode { name, .. } | Self::ContactSheet { name, .. } => name,
        }
    }
}

/// What a transcode does to the picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Nothing.
    #[default]
    None,
    /// Takes the colours away.
    Grayscale,
}

/// Settings of the video encoder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VideoSettings {
    /// `h264`.
    pub codec: String,
    /// x264's preset.
    pub preset: String,
    /// Constant rate factor, 0 to 51.
    pub crf: u32,
    /// Encoder threads: part of the recipe, because the bytes depend on it.
    pub threads: u32,
}

/// Settings of the audio encoder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AudioSettings {
    /// `aac`.
    pub codec: String,
    /// Bit rate, kbit/s.
    pub bitrate_kbps: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRecipe {
    summary: Spanned<String>,
    outputs: Spanned<Vec<RawOutput>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOutput {
    name: Spanned<String>,
    kind: Spanned<String>,
    height: Option<Spanned<u32>>,
    effect: Option<Spanned<String>>,
    video: Option<Spanned<RawVideo>>,
    audio: Option<Spanned<RawAudio>>,
    columns: Option<Spanned<u32>>,
    rows: Option<Spanned<u32>>,
    tile_width: Option<Spanned<u32>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVideo {
    codec: Option<Spanned<String>>,
    preset: Option<Spanned<String>>,
    crf: Option<Spanned<u32>>,
    threads: Option<Spanned<u32>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAudio {
    codec: Option<Spanned<String>>,
    bitrate_kbps: Option<Spanned<u32>>,
}

const PRESETS: &[&str] = &["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"];

/// A problem at a line.
type Problem = (u64, String);

fn at<T>(value: &Spanned<T>) -> u64 {
    value.referenced.line()
}

fn number(field: &str, value: Option<&Spanned<u32>>, default: u32, low: u32, high: u32) -> Result<u32, Problem> {
    let Some(value) = value else {
        return Ok(default);
    };
    if (low..=high).contains(&value.value) { Ok(value.value) } else { Err((at(value), format!("{field} is {}; allowed: {low} to {high}", value.value))) }
}

fn even(field: &str, value: Option<&Spanned<u32>>, checked: u32) -> Result<u32, Problem> {
    match value {
        Some(value) if checked % 2 == 1 => Err((at(value), format!("{field} is {checked}; allowed: even numbers"))),
        _ => Ok(checked),
    }
}

fn word(field: &str, value: Option<&Spanned<String>>, default: &str, allowed: &[&str]) -> Result<String, Problem> {
    let Some(value) = value else {
        return Ok(default.to_owned());
    };
    if allowed.contains(&value.value.as_str()) {
        Ok(value.value.clone())
    } else {
        Err((at(value), format!("{field} is {:?}; allowed: {}", value.value, allowed.join(", "))))
    }
}

/// True for a name that may be a recipe's: lower-case letters, digits and dashes.
pub fn is_recipe_name(name: &str) -> bool {
    (1..=40).contains(&name.len()) && !name.starts_with('-') && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_output_name(name: &str) -> bool {
    (1..=80).contains(&name.len())
        && !name.starts_with('.')
        && name != "manifest.json"
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

impl RawOutput {
    /// Refuses settings that belong to the other kind.
    fn foreign(&self, kind: &str, allowed: &str, given: &[(&str, Option<u64>)]) -> Result<(), Problem> {
        match given.iter().find_map(|(field, line)| line.map(|line| (field, line))) {
            Some((field, line)) => Err((line, format!("{field} does not belong to a {kind}; allowed: {allowed}"))),
            None => Ok(()),
        }
    }

    fn resolve(self) -> Result<Output, Problem> {
        let name = self.name.value.clone();
        if !is_output_name(&name) {
            return Err((at(&self.name), format!("output name is {name:?}; allowed: letters, digits, '-', '_', '.', at most 80")));
        }
        let ends = |endings: &[&str]| {
            if endings.iter().any(|ending| name.ends_with(ending)) {
                Ok(())
            } else {
                Err((at(&self.name), format!("output name is {name:?}; allowed for {}: names ending in {}", self.kind.value, endings.join(" or "))))
            }
        };
        match self.kind.value.as_str() {
            "transcode" => {
                self.foreign(
                    "transcode",
                    "height, effect, video, audio",
                    &[("columns", self.columns.as_ref().map(at)), ("rows", self.rows.as_ref().map(at)), ("tile_width", self.tile_width.as_ref().map(at))],
                )?;
                ends(&[".mp4"])?;
                let height = match self.height.as_ref() {
                    None => None,
                    given => Some(even("height", given, number("height", given, 0, 2, 4320)?)?),
                };
                let effect = match word("effect", self.effect.as_ref(), "none", &["none", "grayscale"])?.as_str() {
                    "grayscale" => Effect::Grayscale,
                    _ => Effect::None,
                };
                let video = self.video.map(|video| video.value).unwrap_or_default();
                let audio = self.audio.map(|audio| audio.value).unwrap_or_default();
                Ok(Output::Transcode {
                    name,
                    height,
                    effect,
                    video: VideoSettings {
                        codec: word("video.codec", video.codec.as_ref(), "h264", &["h264"])?,
                        preset: word("video.preset", video.preset.as_ref(), "veryfast", PRESETS)?,
                        crf: number("video.crf", video.crf.as_ref(), 23, 0, 51)?,
                        threads: number("video.threads", video.threads.as_ref(), 1, 1, 16)?,
                    },
                    audio: AudioSettings {
                        codec: word("audio.codec", audio.codec.as_ref(), "aac", &["aac"])?,
                        bitrate_kbps: number("audio.bitrate_kbps", audio.bitrate_kbps.as_ref(), 96, 32, 512)?,
                    },
                })
            }
            "contact_sheet" => {
                self.foreign(
                    "contact_sheet",
                    "columns, rows, tile_width",
                    &[
                        ("height", self.height.as_ref().map(at)),
                        ("effect", self.effect.as_ref().map(at)),
                        ("video", self.video.as_ref().map(at)),
                        ("audio", self.audio.as_ref().map(at)),
                    ],
                )?;
                ends(&[".jpg", ".jpeg"])?;
                let tile_width = number("tile_width", self.tile_width.as_ref(), 160, 16, 1920)?;
                Ok(Output::ContactSheet {
                    name: name.clone(),
                    columns: number("columns", self.columns.as_ref(), 4, 1, 20)?,
                    rows: number("rows", self.rows.as_ref(), 4, 1, 20)?,
                    tile_width: even("tile_width", self.tile_width.as_ref(), tile_width)?,
                })
            }
            other => Err((at(&self.kind), format!("kind is {other:?}; allowed: transcode, contact_sheet"))),
        }
    }
}

impl Recipe {
    /// Reads a recipe's text; `file` names it in errors.
    ///
    /// # Errors
    /// `Invalid` with the line, what is wrong and what is allowed.
    pub fn parse(name: &str, file: &str, text: &str) -> Result<Self, RecipeError> {
        let invalid = |(line, problem): Problem| RecipeError::Invalid { file: file.to_owned(), line, problem };
        let raw: RawRecipe = serde_saphyr::from_str(text).map_err(|error| {
            let line = error.location().map_or(1, |location| location.line());
            invalid((line, first_line(&error.without_snippet().to_string())))
        })?;
        if raw.outputs.value.is_empty() {
            return Err(invalid((at(&raw.outputs), "outputs is empty; at least one output is needed".to_owned())));
        }
        let mut outputs: Vec<Output> = Vec::new();
        for output in raw.outputs.value {
            let line = at(&output.name);
            let output = output.resolve().map_err(invalid)?;
            if outputs.iter().any(|other| other.name() == output.name()) {
                return Err(invalid((line, format!("output name {:?} stands twice; each needs its own", output.name()))));
            }
            outputs.push(output);
        }
        Ok(Self { name: name.to_owned(), summary: raw.summary.value, outputs })
    }

    /// Loads `FOLDER/NAME.yaml`. The name may come from anyone: it is checked before it becomes a path.
    ///
    /// # Errors
    /// `Unknown` with the names that exist; `Invalid`; `Unreadable`.
    pub fn load(folder: &Path, name: &str) -> Result<Self, RecipeError> {
        let path = folder.join(format!("{name}.yaml"));
        if !is_recipe_name(name) || !path.is_file() {
            return Err(RecipeError::Unknown { name: name.to_owned(), known: known(folder)?.join(", ") });
        }
        let text = std::fs::read_to_string(&path).map_err(|source| RecipeError::Unreadable { path: path.display().to_string(), source })?;
        Self::parse(name, &path.display().to_string(), &text)
    }
}

/// The names of the recipes in a folder, in order.
///
/// # Errors
/// `Unreadable` when the folder cannot be listed.
pub fn known(folder: &Path) -> Result<Vec<String>, RecipeError> {
    let unreadable = |source| RecipeError::Unreadable { path: folder.display().to_string(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        if let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".yaml")).filter(|name| is_recipe_name(name)) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
#[path = "recipe_tests.rs"]
mod tests;
