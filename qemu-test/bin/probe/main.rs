//! The program that cases run inside containers: one verb per call, plain text out.
//!
//! Static and without libc's name service, so that it runs in an image that holds nothing else.

mod attack;
mod network;
mod reach;
mod see;
mod surface;
mod work;

use std::process::ExitCode;

/// Every verb with its arguments, for the message about a wrong call.
const USAGE: &str = "probe VERB …
  print TEXT…            exit N                sleep SECONDS        sig
  lines N INTERVAL_MS    err TEXT…             crash                stdin
  id  uid-map  status    env  args  pwd        hostname  mounts     devices
  fds  socket FAMILY TYPE PROTOCOL  write-all FOLDER
  cat PATH  ls PATH      write PATH TEXT…      append PATH TEXT…    sockets  limits
  http PORT              connect HOST PORT     fetch HOST PORT PATH listen PORT
  serve PORT…            reach PROTO/HOST:PORT…                      scan HOST FIRST LAST
  resolve HOST           keep-asking HOST                           ask SOCKET PATH
  defenceless FAMILY     surface
  alloc MIB              spin SECONDS          fork N               fill PATH MIB";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("probe: {error}");
            ExitCode::from(125)
        }
    }
}

fn run(words: &[&str]) -> Result<u8, String> {
    match words {
        ["print", text @ ..] => work::print(&text.join(" ")),
        ["err", text @ ..] => work::complain(&text.join(" ")),
        ["exit", code] => code.parse().map_err(|_| format!("{code} is no exit code")),
        ["sleep", seconds] => Ok(work::sleep(number(seconds)?)),
        ["lines", count, interval_ms] => work::lines(number(count)?, number(interval_ms)?),
        ["crash"] => work::crash(),
        ["sig"] => work::signals(),
        ["stdin"] => work::echo_stdin(),
        ["alloc", mib] => work::allocate(number(mib)?),
        ["spin", seconds] => Ok(work::spin(number(seconds)?)),
        ["fork", count] => work::fork(number(count)?),
        ["fill", path, mib] => work::fill(path, number(mib)?),
        ["write", path, text @ ..] => work::write(path, &text.join(" ")),
        ["append", path, text @ ..] => work::append(path, &text.join(" ")),
        ["id"] => see::identity(),
        ["uid-map"] => see::files(&["/proc/self/uid_map", "/proc/self/gid_map"]),
        ["status"] => see::status(),
        ["env"] => see::environment(),
        ["args", rest @ ..] => see::arguments(rest),
        ["pwd"] => see::working_directory(),
        ["hostname"] => see::files(&["/proc/sys/kernel/hostname"]),
        ["mounts"] => see::files(&["/proc/self/mountinfo"]),
        ["limits"] => see::files(&["/proc/self/limits"]),
        ["devices"] => see::devices(),
        ["cat", path] => see::files(&[path]),
        ["ls", path] => see::list(path),
        ["surface"] => surface::report(),
        ["sockets"] => see::sockets(),
        ["fds"] => attack::descriptors(),
        ["socket", family, kind, protocol] => attack::socket([family, kind, protocol]),
        ["write-all", folder] => attack::write_all(folder),
        ["http", port] => network::serve_pages(port_number(port)?),
        ["listen", port] => network::listen_once(port_number(port)?),
        ["connect", host, port] => network::connect(host, port_number(port)?),
        ["serve", ports @ ..] => {
            let ports: Result<Vec<u16>, String> = ports.iter().map(|port| port_number(port)).collect();
            reach::serve(&ports?)
        }
        ["reach", targets @ ..] => reach::reach(targets),
        ["scan", host, first, last] => reach::scan(host, port_number(first)?, port_number(last)?),
        ["defenceless", family] => reach::defenceless(family),
        ["resolve", host] => network::show_address(host),
        ["keep-asking", host] => network::keep_asking(host),
        ["fetch", host, port, path] => network::fetch(host, port_number(port)?, path),
        ["ask", socket, path] => network::ask(socket, path),
        _ => Err(format!("no such verb\n{USAGE}")),
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is no number"))
}

fn port_number(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("{text} is no port"))
}
