//! rt ps: the guest's processes of the container.

use serde_json::Value;

use crate::shell::Bundle;

#[test]
fn processes_are_those_of_the_container() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/sh", "-c", "sleep 1000 & echo ready; wait"]);
    let container = bundle.run_detached(&[]);
    container.wrote("ready");
    let json: Value = serde_json::from_str(&container.rt(&["ps", "--format", "json"]).text()).unwrap();
    assert_eq!(json, serde_json::json!([1, 2]));
    for line in [&["ps", &*bundle.id][..], &["ps", &bundle.id, "-ef"]] {
        let ended = bundle.rt(line);
        ended.code(0).stderr("");
        let text = ended.text();
        let rows: Vec<Vec<&str>> = text.lines().map(|row| row.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"], "{text}");
        assert_eq!(rows.len(), 3, "{text}");
        assert_eq!((&rows[1][1..3], rows[1][7]), (&["1", "0"][..], "/bin/sh"), "{text}");
        assert_eq!((&rows[2][1..3], &rows[2][7..]), (&["2", "1"][..], &["sleep", "1000"][..]), "{text}");
        assert_eq!(rows[1][5], "?");
    }
    bundle.rt(&["ps", &bundle.id, "-o", "pid=", "-o", "comm="]).says(&["      1 sh", "      2 sleep"]);
    let aux = bundle.rt(&["ps", &bundle.id, "aux"]).text();
    let rows: Vec<Vec<&str>> = aux.lines().map(|row| row.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..8], ["USER", "PID", "%CPU", "%MEM", "VSZ", "RSS", "TTY", "STAT"], "{aux}");
    assert_eq!((rows.len(), rows[1][1], rows[1][7]), (3, "1", "Ss"), "{aux}");
    assert!(rows[2][4..6].iter().all(|kib| kib.parse::<u64>().is_ok_and(|kib| kib > 0)), "{aux}");
    bundle.rt(&["ps", &bundle.id, "-Z"]).fails(&["-Z", "--format json"]);
    bundle.rt(&["kill", &bundle.id, "KILL"]).says(&[]);
    container.reaches("stopped");
    container.rt(&["ps"]).says(&["UID          PID    PPID  C STIME TTY          TIME CMD"]);
    bundle.rt(&["ps", "nothing"]).fails(&["container does not exist"]);
}

#[test]
fn a_created_container_has_one() {
    let bundle = Bundle::new();
    let container = bundle.create(&[]);
    container.rt(&["ps", "-f", "json"]).says(&["[1]"]);
}
