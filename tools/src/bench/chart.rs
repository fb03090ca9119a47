//! Charts as inline SVG: bars, percentile curves, and intervals against a goal. No scripts, no fonts, no colours but
//! those of the page's style, so that a page of them is one file for ever.

use std::fmt::Write as _;

const WIDTH: f64 = 920.0;
/// Room for labels on the left of horizontal charts.
const LABELS: f64 = 330.0;
/// Room for figures behind a bar.
const FIGURES: f64 = 190.0;
const LINE: f64 = 22.0;
/// Colours of the style that series take in turn.
const COLOURS: usize = 8;

/// For text between tags and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c => out.push(c),
        }
    }
    out
}

fn open(width: f64, height: f64, title: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {width} {height:.0}\" role=\"img\" aria-label=\"{0}\"><title>{0}</title>\n",
        escape(title)
    )
}

/// Cut to what fits, with the whole as a tooltip.
fn label(out: &mut String, x: f64, y: f64, class: &str, text: &str, max: usize) {
    let mut shown: String = text.chars().take(max).collect();
    if shown.len() < text.len() {
        shown.pop();
        shown.push('…');
    }
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\"><title>{}</title>{}</text>",
        escape(text),
        escape(&shown)
    );
}

/// A horizontal bar.
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) value: f64,
    /// Behind the bar.
    pub(super) figure: String,
    /// Bars of one series have one colour.
    pub(super) series: usize,
    /// A limit on the same scale.
    pub(super) limit: Option<f64>,
}

pub(super) fn bars(title: &str, bars: &[Bar]) -> String {
    let height = LINE * bars.len() as f64 + 10.0;
    let most = bars.iter().flat_map(|bar| [Some(bar.value), bar.limit]).flatten().fold(0.0, f64::max);
    let scale = if most > 0.0 { (WIDTH - LABELS - FIGURES) / most } else { 0.0 };
    let mut out = open(WIDTH, height, title);
    for (at, bar) in bars.iter().enumerate() {
        let y = LINE * at as f64 + 4.0;
        label(&mut out, LABELS - 8.0, y + 13.0, "end", &bar.label, 52);
        let width = (bar.value * scale).max(1.0);
        let _ = writeln!(
            out,
            "<rect x=\"{LABELS}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"16\" class=\"c{}\"/>",
            bar.series % COLOURS
        );
        let mut end = width;
        if let Some(limit) = bar.limit {
            let x = LABELS + limit * scale;
            end = end.max(limit * scale);
            let _ = writeln!(
                out,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" class=\"limit\"/>",
                y - 2.0,
                y + 18.0
            );
        }
        label(&mut out, LABELS + end + 6.0, y + 13.0, "figure", &bar.figure, 60);
    }
    out + "</svg>\n"
}

/// Percentiles of one run: (per cent, microseconds).
pub(super) struct Curve {
    pub(super) label: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// Percentiles on a scale of nines, latencies on a logarithmic one.
pub(super) fn curves(title: &str, curves: &[Curve]) -> String {
    let (left, top, plot) = (70.0, 10.0, 300.0);
    let right = WIDTH - 20.0;
    let legend = LINE * curves.len() as f64;
    let mut out = open(WIDTH, top + plot + 40.0 + legend, title);
    let shown: Vec<(f64, f64)> = curves.iter().flat_map(|curve| curve.points.iter().copied()).collect();
    let values = shown.iter().map(|point| point.1).filter(|us| *us > 0.0);
    let least = values.clone().fold(f64::INFINITY, f64::min).log10().floor();
    let most = values.fold(1.0, f64::max).log10().ceil().max(least + 1.0);
    let nines = |percent: f64| (1.0 / (1.0 - percent / 100.0).max(1e-6)).log10();
    let widest = shown.iter().filter(|point| point.0 < 100.0).map(|point| nines(point.0)).fold(3.0, f64::max);
    let x = |percent: f64| left + nines(percent).min(widest) / widest * (right - left);
    let y = |us: f64| top + plot - (us.max(1e-9).log10() - least) / (most - least) * plot;
    let mut decade = least;
    while least.is_finite() && decade <= most {
        let us = 10f64.powf(decade);
        let _ = writeln!(
            out,
            "<line x1=\"{left}\" x2=\"{right}\" y1=\"{0:.1}\" y2=\"{0:.1}\" class=\"grid\"/>",
            y(us)
        );
        label(&mut out, left - 8.0, y(us) + 4.0, "end", &super::latency::format_us(us), 12);
        decade += 1.0;
    }
    for (percent, text) in
        [(0.0, "0"), (50.0, "50 %"), (90.0, "90 %"), (99.0, "99 %"), (99.9, "99.9 %"), (99.99, "99.99 %")]
    {
        if nines(percent) <= widest + 1e-9 {
            let at = x(percent);
            let _ = writeln!(
                out,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{:.1}\" class=\"grid\"/>",
                top + plot
            );
            label(&mut out, at, top + plot + 18.0, "middle", text, 12);
        }
    }
    for (at, curve) in curves.iter().enumerate() {
        let points: Vec<_> =
            curve.points.iter().map(|(percent, us)| format!("{:.1},{:.1}", x(*percent), y(*us))).collect();
        let _ = writeln!(out, "<polyline points=\"{}\" class=\"l{}\"/>", points.join(" "), at % COLOURS);
        let line = top + plot + 40.0 + LINE * at as f64;
        let _ = writeln!(
            out,
            "<rect x=\"{left}\" y=\"{:.1}\" width=\"14\" height=\"4\" class=\"c{}\"/>",
            line - 6.0,
            at % COLOURS
        );
        label(&mut out, left + 22.0, line, "figure", &curve.label, 120);
    }
    out + "</svg>\n"
}

/// A figure against its goal, both as a share of the goal: above 1 is reached.
pub(super) struct Whisker {
    pub(super) label: String,
    pub(super) low: f64,
    pub(super) median: f64,
    pub(super) high: f64,
    pub(super) figure: String,
    /// Class of the colour: `reached`, `missed`, `not_shown`.
    pub(super) verdict: String,
}

/// Up to four times the goal; what lies beyond is cut.
pub(super) fn whiskers(title: &str, whiskers: &[Whisker]) -> String {
    const MOST: f64 = 4.0;
    let height = LINE * whiskers.len() as f64 + 34.0;
    let bottom = height - 24.0;
    let scale = (WIDTH - LABELS - FIGURES) / MOST;
    let mut out = open(WIDTH, height, title);
    for goal in 0..=MOST as usize {
        let x = LABELS + goal as f64 * scale;
        let class = if goal == 1 { "limit" } else { "grid" };
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{bottom:.1}\" class=\"{class}\"/>"
        );
        let text = if goal == 1 { "goal".to_owned() } else { format!("{goal} ×") };
        label(&mut out, x, bottom + 16.0, "middle", &text, 8);
    }
    for (at, whisker) in whiskers.iter().enumerate() {
        let y = LINE * at as f64 + 12.0;
        let x = |value: f64| LABELS + value.clamp(0.0, MOST) * scale;
        label(&mut out, LABELS - 8.0, y + 4.0, "end", &whisker.label, 52);
        let _ = writeln!(
            out,
            "<line x1=\"{0:.1}\" x2=\"{1:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" class=\"w {3}\"/>\
             <circle cx=\"{2:.1}\" cy=\"{y:.1}\" r=\"5\" class=\"{3}\"/>",
            x(whisker.low),
            x(whisker.high),
            x(whisker.median),
            whisker.verdict,
        );
        label(&mut out, LABELS + MOST * scale + 8.0, y + 4.0, "figure", &whisker.figure, 24);
    }
    out + "</svg>\n"
}
