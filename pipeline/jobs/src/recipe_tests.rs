//! What recipes are accepted, what is refused and how it is said; every recipe that ships.

use super::*;

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes")
}

#[test]
fn every_recipe_that_ships_is_valid() {
    let names = known(&folder()).unwrap();
    assert_eq!(names, ["360p", "contact-sheet", "default", "grayscale"]);
    for name in names {
        let recipe = Recipe::load(&folder(), &name).unwrap();
        let text = serde_json::to_string(&recipe).unwrap();
        assert_eq!(serde_json::from_str::<Recipe>(&text).unwrap(), recipe);
    }
}

#[test]
fn a_recipe_name_from_outside_never_becomes_a_path() {
    for name in ["../recipes/default", "", "/etc/passwd", "Default", "a b", "-x", "nothing"] {
        let error = Recipe::load(&folder(), name).unwrap_err();
        assert!(matches!(error, RecipeError::Unknown { .. }), "{name}: {error}");
        assert!(error.to_string().ends_with("there are: 360p, contact-sheet, default, grayscale"), "{error}");
    }
}

#[test]
fn a_wrong_recipe_is_refused_with_file_line_and_what_is_allowed() {
    let cases = [
        ("summary: s\noutputs:\n  - {name: a.mp4, kind: transcod}\n", 3, "kind is \"transcod\"; allowed: transcode, contact_sheet"),
        ("summary: s\noutputs:\n  - {name: a.mp4, kind: transcode, height: 361}\n", 3, "height is 361; allowed: even numbers"),
        ("summary: s\noutputs:\n  - name: a.mp4\n    kind: transcode\n    video: {crf: 60}\n", 5, "video.crf is 60; allowed: 0 to 51"),
        ("summary: s\noutputs:\n  - {name: ../a.mp4, kind: transcode}\n", 3, "output name is \"../a.mp4\"; allowed: letters"),
        ("summary: s\noutputs:\n  - {name: a.avi, kind: transcode}\n", 3, "names ending in .mp4"),
        (
            "summary: s\noutputs:\n  - {name: a.jpg, kind: contact_sheet,\n     height: 2}\n",
            4,
            "height does not belong to a contact_sheet; allowed: columns, rows, tile_width",
        ),
        ("summary: s\noutputs: []\n", 2, "outputs is empty"),
        ("summary: s\noutputs:\n  - {name: a.mp4, kind: transcode}\n  - {name: a.mp4, kind: transcode}\n", 4, "stands twice"),
        ("summary: s\ncolour: red\noutputs: []\n", 2, "colour"),
        ("summary: s\noutputs:\n  - {name: a.mp4, kind: transcode, height: tall}\n", 3, ""),
        ("summary: [", 1, ""),
    ];
    for (text, line, problem) in cases {
        let error = Recipe::parse("x", "x.yaml", text).unwrap_err().to_string();
        assert!(error.starts_with(&format!("x.yaml:{line}: ")), "{error}\n{text}");
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn settings_that_are_not_given_are_resolved() {
    let recipe = Recipe::parse("x", "x.yaml", "summary: s\noutputs: [{name: a.mp4, kind: transcode}]\n").unwrap();
    let Output::Transcode { height, effect, video, audio, .. } = &recipe.outputs[0] else { panic!() };
    assert_eq!((*height, *effect, video.threads, audio.bitrate_kbps), (None, Effect::None, 1, 96));
}
