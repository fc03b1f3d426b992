//! What may be spent, from `benches/budgets.json`.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context;
use serde::Deserialize;

/// A figure that must not be exceeded.
#[derive(Clone, Debug, Deserialize)]
pub struct Budget {
    pub limit: f64,
    pub unit: String,
    /// How it was set.
    pub reason: String,
}

/// All budgets of one bench by the name of the figure.
pub struct Budgets(BTreeMap<String, Budget>);

impl Budgets {
    /// Reads the budgets of `bench`.
    pub fn read(file: &Path, bench: &str) -> anyhow::Result<Self> {
        let text = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
        let mut all: BTreeMap<String, BTreeMap<String, Budget>> =
            serde_json::from_slice(&text).with_context(|| format!("parse {}", file.display()))?;
        let budgets =
            all.remove(bench).with_context(|| format!("{} has no {bench}", file.display()))?;
        Ok(Self(budgets))
    }

    /// One line a budget, and whether all are kept. A figure that was not measured counts
    /// as exceeded: a bench that stops measuring must not pass.
    pub fn judge(&self, figures: &BTreeMap<String, f64>) -> (String, bool) {
        let mut lines = String::new();
        let mut kept = true;
        for (name, budget) in &self.0 {
            let figure = figures.get(name);
            let within = figure.is_some_and(|figure| *figure <= budget.limit);
            kept &= within;
            let measured = figure.map_or("not measured".into(), |figure| format!("{figure:.3}"));
            lines.push_str(&format!(
                "{} {name:<36} {measured:>12} of {:>9.3} {}\n",
                if within { "ok  " } else { "OVER" },
                budget.limit,
                budget.unit,
            ));
        }
        (lines, kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budgets() -> Budgets {
        let budget = Budget { limit: 2.0, unit: "ms".into(), reason: String::new() };
        Budgets(BTreeMap::from([("start".into(), budget)]))
    }

    #[test]
    fn a_figure_over_its_budget_or_missing_fails() {
        let judge = |figures: &[(&str, f64)]| {
            budgets()
                .judge(&figures.iter().map(|(name, value)| ((*name).into(), *value)).collect())
                .1
        };
        assert!(judge(&[("start", 2.0)]));
        assert!(!judge(&[("start", 2.1)]));
        assert!(!judge(&[("other", 1.0)]));
    }

    #[test]
    fn the_recorded_budgets_can_be_read_and_give_reasons() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("budgets.json");
        for bench in ["boot", "isolation"] {
            let budgets = Budgets::read(&file, bench).expect("budgets of the bench");
            assert!(!budgets.0.is_empty(), "{bench}");
            assert!(budgets.0.values().all(|budget| !budget.reason.is_empty()), "{bench}");
        }
    }
}
