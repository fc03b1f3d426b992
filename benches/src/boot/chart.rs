//! The stages as a picture: one bar a process, in SVG.

use super::stages::Trace;

const WIDTH: f64 = 900.0;
const LEFT: f64 = 70.0;
const ROW: f64 = 46.0;
const COLOURS: [(&str, &str); 3] = [("cli", "#4e79a7"), ("shim", "#f28e2b"), ("vmm", "#59a14f")];

/// Each process's stages along one time line.
pub fn svg(trace: &Trace) -> String {
    let end = trace.stages.last().map_or(1.0, |stage| stage.at_ms).max(0.001);
    let height = ROW * COLOURS.len() as f64 + 50.0;
    let x = |ms: f64| LEFT + ms / end * (WIDTH - LEFT - 30.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"18\" font-size=\"14\">caisson run, {end:.1} ms</text>\n"
    );
    for (row, (process, colour)) in COLOURS.iter().enumerate() {
        let top = 32.0 + row as f64 * ROW;
        let stages: Vec<_> =
            trace.stages.iter().filter(|stage| stage.process == *process).collect();
        out.push_str(&format!("<text x=\"8\" y=\"{}\">{process}</text>\n", top + 15.0));
        if let (Some(first), Some(last)) = (stages.first(), stages.last()) {
            let (from, to) = (x(first.at_ms), x(last.at_ms));
            out.push_str(&format!(
                "<rect x=\"{from:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"20\" rx=\"3\" \
                 fill=\"{colour}\" opacity=\"0.35\"/>\n",
                (to - from).max(1.0)
            ));
        }
        for (number, stage) in stages.iter().enumerate() {
            let at = x(stage.at_ms);
            // Neighbours' labels alternate between two lines.
            let label = top + if number % 2 == 0 { 14.0 } else { 32.0 };
            out.push_str(&format!(
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{}\" stroke=\"{colour}\" \
                 stroke-width=\"2\"/><text x=\"{:.1}\" y=\"{label}\">{}</text>\n",
                top + 20.0,
                at + 3.0,
                stage.stage
            ));
        }
    }
    out.push_str("</svg>\n");
    out
}
