//! The page as people see it: in a headless Chromium, served by real processes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is the report")]

mod browser;
#[path = "../support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    browser::Browser,
    support::{nats_server::NatsServer, program::Program},
};

/// A browser takes much of a small machine: one at a time.
static MACHINE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// How soon the page has to say that something is gone, with time for a busy machine: 3 s is the promise.
const SOON: Duration = Duration::from_secs(5);

/// What is wrong with where things are: text and controls that overlap, or stand out of their section or of the page.
const MISPLACED: &str = r##"(() => {
  const wrong = [];
  const shown = it => {
    const box = it.getBoundingClientRect();
    return it.checkVisibility() && box.width > 0 && box.height > 0;
  };
  const name = it => it.tagName + "#" + it.id + "." + it.className + " " + JSON.stringify(it.textContent.slice(0, 20));
  if (document.documentElement.scrollWidth > innerWidth) wrong.push("the page is wider than the window");
  const sections = [...document.querySelectorAll("section, header")].filter(shown);
  const overlap = (a, b) => {
    const [p, q] = [a.getBoundingClientRect(), b.getBoundingClientRect()];
    const width = Math.min(p.right, q.right) - Math.max(p.left, q.left);
    return width > 1 && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 1;
  };
  const pairs = (list, context) => list.forEach((a, at) => list.slice(at + 1).forEach(b => {
    if (!a.contains(b) && !b.contains(a) && overlap(a, b)) wrong.push(context + ": " + name(a) + " overlaps " + name(b));
  }));
  pairs(sections, "sections");
  for (const section of sections) {
    const frame = section.getBoundingClientRect();
    // What lies over something on purpose is in the timeline.
    const counts = it => shown(it) && !it.closest(".timeline") && it.tagName !== "OPTION";
    const parts = [...section.querySelectorAll("*")].filter(counts);
    for (const it of parts) {
      const box = it.getBoundingClientRect();
      if (box.left < frame.left - 1 || box.right > frame.right + 1) wrong.push(name(it) + " stands out of " + name(section));
    }
    pairs(parts.filter(it => it.children.length === 0 || it.tagName === "BUTTON" || it.tagName === "SELECT"), name(section));
    for (const it of section.querySelectorAll("h2, .now, dd, #hint, .badge")) {
      const runsOver = it.scrollWidth > it.clientWidth + 1 && getComputedStyle(it).overflow === "visible";
      if (shown(it) && runsOver) wrong.push(name(it) + " runs over");
    }
  }
  return wrong;
})()"##;

/// The position that the page shows, ms.
const POSITION: &str = r#"(() => {
  const [minutes, seconds] = document.getElementById("time").textContent.split(" of ")[0].split(":").slice(-2);
  return Math.round((Number(minutes) * 60 + Number(seconds)) * 1000);
})()"#;

fn badge(text: &str) -> String {
    format!("document.getElementById('mode').textContent === '{text}'")
}

async fn create(gateway: &Program, id: &str, scenes: &[(&str, u64)]) {
    let scenes: Vec<Value> = scenes.iter().map(|(name, ms)| json!({"name": name, "duration_ms": ms})).collect();
    let body = json!({"stream_id": id, "scenes": scenes}).to_string();
    let (status, answer) = gateway.call("POST", "/streams", Some(&body)).await;
    assert_eq!(status, 201, "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_on_the_page_overlaps_whatever_the_names() {
    let _machine = MACHINE.lock().await;
    let program = Program::standalone().ready().await;
    let uuid = "0b9f8a9e-3c1f-4d53-9a57-3c1f4d539a57";
    let (long_id, long_name) = ("W".repeat(128), "W".repeat(256));
    let (right_to_left, mixed) =
        ("\u{5de}\u{5d1}\u{5d5}\u{5d0} ".repeat(12), "\u{645}\u{642}\u{62f}\u{645}\u{629} Intro 3");
    let ids = ["show", uuid, &long_id];
    for id in ids {
        create(&program, id, &[(&long_name, 600_000), (&right_to_left, 600_000), (mixed, 600_000), ("Outro", 5)]).await;
    }
    let mut browser = Browser::start().await;
    for id in ids {
        browser.width(1280).await;
        browser.open(&format!("http://{}/#{id}", program.web().await)).await;
        browser.until("document.querySelectorAll('.timeline button').length > 0").await;
        browser.until("document.querySelectorAll('#streams li').length === 3").await;
        for scene in [&long_name, &right_to_left, mixed] {
            let encoded: String = scene.bytes().map(|byte| format!("%{byte:02X}")).collect();
            program.call("POST", &format!("/streams/{id}/scene/{encoded}"), None).await;
            let is_shown = format!("document.getElementById('scene').textContent === {}", json!(scene));
            browser.until(&is_shown).await;
            for width in [390, 800, 1024, 1280, 1920] {
                browser.width(width).await;
                let wrong = browser.value(MISPLACED).await;
                assert_eq!(wrong, json!([]), "{id} at {width} px, in {scene}");
            }
        }
    }
    assert_eq!(browser.errors(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_fragment_opens_the_page() {
    let _machine = MACHINE.lock().await;
    let program = Program::standalone().ready().await;
    let mut browser = Browser::start().await;
    for fragment in ["#%", "#%zz", "#%E0%A4", "#", "##", "#%00", "#<img src=x onerror=alert(1)>", "#\u{202e}x"] {
        browser.open(&format!("http://{}/{fragment}", program.web().await)).await;
        browser.until("document.getElementById('none').checkVisibility()").await;
        // What was said of it, if it is a name, is text.
        assert_eq!(browser.value("document.querySelectorAll('main img').length").await, 0, "{fragment}");
        assert_eq!(browser.value(MISPLACED).await, json!([]), "{fragment}");
        assert_eq!(browser.errors(), Vec::<String>::new(), "{fragment}");
    }
}

/// Opens the page on a new stream whose first scene is short, and sees it run.
async fn watch(browser: &mut Browser, gateway: &Program, id: &str) {
    create(gateway, id, &[("Short", 4_000), ("Long", 600_000)]).await;
    browser.open(&format!("http://{}/#{id}", gateway.web().await)).await;
    browser.until(&badge("RUNNING")).await;
}

/// The badge says soon that what is shown is not live, and the clock ends with its scene.
async fn sees_the_loss(browser: &mut Browser, what: &str, since: Instant) {
    browser.until(&badge("NOT LIVE")).await;
    let took = since.elapsed();
    println!("measured: the page says that {what} is gone after {took:.2?}");
    assert!(took < SOON, "{took:?} after {what} had gone");
    // Until after the scene would have ended.
    tokio::time::sleep(Duration::from_millis(4_500).saturating_sub(since.elapsed())).await;
    let (first, later) = (browser.value(POSITION).await, {
        tokio::time::sleep(Duration::from_millis(300)).await;
        browser.value(POSITION).await
    });
    assert_eq!((first.as_u64(), later.as_u64()), (Some(4_000), Some(4_000)), "the clock, without {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_says_when_its_state_is_not_live_and_its_clock_stops() {
    let _machine = MACHINE.lock().await;
    let mut nats = NatsServer::start();
    let mut service = Program::serve(&nats.url(), &[]).ready().await;
    let mut gateway = Program::gateway(&nats.url(), &[]).ready().await;
    let mut browser = Browser::start().await;

    watch(&mut browser, &gateway, "without-service").await;
    service.kill();
    sees_the_loss(&mut browser, "the service", Instant::now()).await;
    let _service = Program::serve(&nats.url(), &[]).ready().await;
    gateway.readiness(200).await;
    create(&gateway, "without-service", &[("Short", 4_000), ("Long", 600_000)]).await;
    browser.until(&badge("RUNNING")).await;

    watch(&mut browser, &gateway, "without-broker").await;
    nats.kill();
    sees_the_loss(&mut browser, "the broker", Instant::now()).await;
    nats.restart();
    browser.until(&badge("RUNNING")).await;
    gateway.readiness(200).await;

    watch(&mut browser, &gateway, "without-gateway").await;
    gateway.signal("STOP");
    sees_the_loss(&mut browser, "an answer of the gateway", Instant::now()).await;
    gateway.signal("CONT");
    browser.until(&badge("RUNNING")).await;

    watch(&mut browser, &gateway, "without-any-gateway").await;
    gateway.kill();
    sees_the_loss(&mut browser, "the gateway", Instant::now()).await;
    assert_eq!(browser.errors(), Vec::<String>::new());
}
