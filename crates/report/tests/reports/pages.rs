//! The page as text; testing/html looks at it in a browser.

use belljar_model::RunSummary;
use belljar_report::Format;
use proptest::prelude::*;

use crate::plausible;

fn page(run: &RunSummary) -> String {
    let mut out = Vec::new();
    Format::Html.write(run, "", &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn data(page: &str) -> serde_json::Value {
    let from = page.find(r#"id="data">"#).unwrap() + r#"id="data">"#.len();
    let to = from + page[from..].find("</script>").unwrap();
    serde_json::from_str(&page[from..to]).unwrap()
}

#[test]
fn nothing_hostile_gets_out_of_the_data() {
    let page = page(&RunSummary::of(&plausible::log(60, true)));
    assert_eq!(page.matches("<script").count(), 2);
    assert_eq!(page.matches("</script").count(), 2);
    assert_eq!(page.matches("<img").count(), 0);
    for place in ["nonce", "title", "style", "script", "plain"] {
        assert!(!page.contains(&format!("{{{{{place}}}}}")), "nothing was put into {place}");
    }
    assert_eq!(data(&page)["units"].as_array().unwrap().len(), 60);
}

#[test]
fn nothing_is_fetched() {
    let page = page(&RunSummary::of(&plausible::log(6, false)));
    for outside in ["http:", "https:", "//cdn", "@import", "url(http", "src="] {
        let found =
            page.match_indices(outside).filter(|(at, _)| !page[*at..].starts_with("http://www.w3.org/2000/svg"));
        assert_eq!(found.count(), 0, "{outside}");
    }
}

proptest! {
    #[test]
    fn any_text_stays_in_the_data(text in any::<String>()) {
        let mut events = plausible::log(4, false);
        for event in &mut events {
            if let belljar_model::EventKind::Output(o) = &mut event.kind {
                o.tail.push_str(&text);
            }
        }
        let page = page(&RunSummary::of(&events));
        prop_assert_eq!(page.matches("<script").count(), 2);
        prop_assert_eq!(data(&page)["units"].as_array().unwrap().len(), 4);
    }
}
