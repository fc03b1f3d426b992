//! Names that are close to one which does not exist.

const MAX_SUGGESTIONS: usize = 3;

/// The known names that a typing mistake away from `name`, nearest first.
pub(super) fn near<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let repository = |name: &str| name.split(':').next().unwrap_or_default().to_owned();
    let mut scored: Vec<(usize, &str)> = known
        .into_iter()
        .filter_map(|candidate| {
            // Another tag of the same repository is the likeliest thing meant.
            let same_repository = repository(candidate) == repository(name);
            let distance = if same_repository { 0 } else { edit_distance(name, candidate) };
            (distance <= 1 + name.len() / 5).then_some((distance, candidate))
        })
        .collect();
    scored.sort();
    scored.into_iter().take(MAX_SUGGESTIONS).map(|(_, name)| name.to_owned()).collect()
}

/// Levenshtein's distance, in bytes: names are ASCII.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_mistake_and_another_tag_are_near() {
        let known = ["debian:12", "busybox:latest", "me/app:1"];
        assert_eq!(near("debain:12", known), ["debian:12"]);
        assert_eq!(near("busybox:1.36", known), ["busybox:latest"]);
        assert!(near("postgres:16", known).is_empty());
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
    }
}
