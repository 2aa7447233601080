//! `--report`: the results as one HTML page that needs nothing else.

mod charts;
mod loads;
mod scale;
mod svg;
mod table;

#[cfg(test)]
mod tests;

use std::fmt::Write;

use charts::Titled;
use svg::{escape, swatch};

use crate::files;
use crate::output::{number, plural};
use crate::simulate::Report;
use crate::simulate::args::SimulateArgs;
use crate::simulate::cases::{CaseRuns, by_case};

/// What was simulated: names and values.
pub(crate) type Facts = Vec<(&'static str, String)>;

/// What the command line said, and what was measured for it.
pub(crate) fn facts(args: &SimulateArgs, report: &Report) -> Facts {
    let list = |items: Vec<String>| items.join(", ");
    let mut facts = vec![(
        "Traces",
        list(args.traces.iter().map(|path| files::name(path)).collect())
            + if args.held_out { " (held-out prompts only)" } else { "" },
    )];
    let profiles = report.capacity_per_s.iter();
    let profiles =
        profiles.map(|(name, capacity)| format!("{name} (capacity {} requests/s)", number(*capacity)));
    facts.push(("Profiles", list(profiles.collect())));
    facts.push(("Arrivals", list(args.arrivals.iter().map(ToString::to_string).collect())));
    if !args.load.is_empty() {
        facts.push(("Loads", list(args.load.iter().map(ToString::to_string).collect())));
    }
    facts.push(("Policies", list(args.policies.iter().map(ToString::to_string).collect())));
    facts.push(("Seeds", if args.seeds == 1 { "1".into() } else { format!("1 to {}", args.seeds) }));
    let blocking = if args.blocking_scores { ", and the engine waits" } else { "" };
    let monitor = if args.no_monitor { "; monitor off" } else { "" };
    facts.push(("Predictions", format!("{}, {} s each{blocking}{monitor}", args.scores, args.score_s)));
    let taus: Vec<f64> = report.runs.iter().filter_map(|run| run.tau_b).collect();
    if let Some(least) = taus.iter().copied().reduce(f64::min) {
        let most = taus.iter().copied().fold(least, f64::max);
        facts.push((
            "Kendall tau-b",
            if most - least < 5e-4 { format!("{least:.3}") } else { format!("{least:.3} to {most:.3}") },
        ));
    }
    let limits = [
        args.duration_s.map(|it| format!("arrivals for {it} s")),
        args.requests.map(|it| format!("at most {}", plural(it as usize, "request"))),
        args.max_tokens.map(|it| format!("at most {} an answer", plural(it as usize, "token"))),
        args.seats.map(|it| plural(it as usize, "seat")),
    ];
    let limits: Vec<String> = limits.into_iter().flatten().collect();
    if !limits.is_empty() {
        facts.push(("Limits", list(limits)));
    }
    facts
}

/// The page.
pub(crate) fn render(facts: &Facts, report: &Report) -> String {
    let cases = by_case(&report.runs);
    let mut rows = String::new();
    for (name, value) in facts {
        let _ = writeln!(rows, "<dt>{name}</dt><dd>{}</dd>", escape(value));
    }
    format!(
        include_str!("report/page.html"),
        version = env!("CARGO_PKG_VERSION"),
        title = "Simulated scheduling policies",
        style = include_str!("report/page.css"),
        facts = rows,
        body = tables(&cases) + &load_section(&cases) + &case_sections(&cases),
    )
}

fn tables(cases: &[CaseRuns<'_>]) -> String {
    let mut html = String::from(
        "<h2>Results</h2>\n<p>Latencies in seconds, means over the seeds; each ratio is to the first policy on the \
         same seed. ▲ marks what got worse by more than 2%, ▽ what got better by more than 2%.</p>\n",
    );
    for (index, case) in cases.iter().enumerate() {
        let _ = write!(
            html,
            "<section class=\"case\"><h3><a href=\"#case-{index}\">{}</a></h3>\n<p>{}; ratios to {}</p>\n{}</section>\n",
            escape(&case.name()),
            escape(&case.size()),
            escape(case.baseline()),
            table::html(case)
        );
    }
    html
}

fn load_section(cases: &[CaseRuns<'_>]) -> String {
    let groups = loads::of_cases(cases);
    if groups.is_empty() {
        return String::new();
    }
    let mut html = String::from(
        "<h2>Latency against load</h2>\n<p>Means over the seeds; whiskers reach from the smallest to the largest \
         seed. Lines are set apart sideways a little so that whiskers can be told apart.</p>\n",
    );
    for group in &groups {
        let _ =
            write!(html, "<h3>{}</h3>\n{}", escape(&group.name), figures(group.policies(), &group.charts()));
    }
    html
}

fn case_sections(cases: &[CaseRuns<'_>]) -> String {
    let mut html = String::from(
        "<h2>Case by case</h2>\n<p>Distributions pool the answers of all seeds. \
         Where lines coincide, the last policy hides the others. \
         Deciles cut answers of one length by arrival.</p>\n",
    );
    for (index, case) in cases.iter().enumerate() {
        let policies = case.policies.iter().map(|(policy, _)| *policy);
        let _ = write!(
            html,
            "<section id=\"case-{index}\"><h3>{}</h3>\n{}</section>\n",
            escape(&case.name()),
            figures(policies, &charts::of_case(case))
        );
    }
    html
}

fn figures<'a>(policies: impl Iterator<Item = &'a str>, charts: &[Titled]) -> String {
    let mut html = String::from("<ul class=\"legend\">");
    for (index, policy) in policies.enumerate() {
        let _ = write!(html, "<li>{}{}</li>", swatch(index), escape(policy));
    }
    html.push_str("</ul>\n<div class=\"charts\">\n");
    for (title, chart) in charts {
        let _ = writeln!(html, "<figure><figcaption>{title}</figcaption>{}</figure>", chart.svg());
    }
    html.push_str("</div>\n");
    html
}
