# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_rt_global_optspecs
    string join \n debug log= log-format= root= systemd-cgroup rootless= criu= hypervisor= v/version h/help
end

function __fish_rt_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_rt_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_rt_using_subcommand
    set -l cmd (__fish_rt_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c rt -n "__fish_rt_needs_command" -l log -d 'Append the log to this file' -r -F
complete -c rt -n "__fish_rt_needs_command" -l log-format -d 'Form of the log [default: text]' -r -f -a "text\t''
json\t''"
complete -c rt -n "__fish_rt_needs_command" -l root -d 'Directory of the containers\' state [default: /run/rt, or $XDG_RUNTIME_DIR/rt for other users than root]' -r -F
complete -c rt -n "__fish_rt_needs_command" -l rootless -d 'Go on without host cgroups where they are not allowed; auto: unless root' -r -f -a "true\t''
false\t''
auto\t''"
complete -c rt -n "__fish_rt_needs_command" -l criu -d 'Accepted for runc\'s sake: a virtual machine is not CRIU\'s to save' -r -F
complete -c rt -n "__fish_rt_needs_command" -l hypervisor -d 'What carries the virtual machine' -r -f -a "auto\t'The best that works on this host'
kvm\t'rt\'s own VMM on KVM'
qemu\t'QEMU'"
complete -c rt -n "__fish_rt_needs_command" -l debug -d 'Log debugging information too'
complete -c rt -n "__fish_rt_needs_command" -l systemd-cgroup -d 'cgroupsPath has systemd\'s form, SLICE:PREFIX:NAME'
complete -c rt -n "__fish_rt_needs_command" -s v -l version -d 'Print the version'
complete -c rt -n "__fish_rt_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rt -n "__fish_rt_needs_command" -f -a "checkpoint" -d 'Not supported: the state of a container in a virtual machine is that of its machine'
complete -c rt -n "__fish_rt_needs_command" -f -a "config" -d 'Show the configuration that is in force, or convert one of Kata Containers'
complete -c rt -n "__fish_rt_needs_command" -f -a "create" -d 'Create a container; its process waits for `rt start`'
complete -c rt -n "__fish_rt_needs_command" -f -a "debug" -d 'Open a shell in the guest itself, beside its agent'
complete -c rt -n "__fish_rt_needs_command" -f -a "delete" -d 'Delete a container that has stopped'
complete -c rt -n "__fish_rt_needs_command" -f -a "doctor" -d 'Show how this node\'s engines are wired to rt, what is wrong, and the line that mends it; exit code 1 if something is'
complete -c rt -n "__fish_rt_needs_command" -f -a "events" -d 'Show statistics and out-of-memory events of a container'
complete -c rt -n "__fish_rt_needs_command" -f -a "exec" -d 'Run another process in a container'
complete -c rt -n "__fish_rt_needs_command" -f -a "features" -d 'Show what the runtime supports'
complete -c rt -n "__fish_rt_needs_command" -f -a "gc" -d 'Remove what crashed sandboxes and older versions left'
complete -c rt -n "__fish_rt_needs_command" -f -a "install" -d 'Make an engine know this rt as the runtime "rt"; shows the change first'
complete -c rt -n "__fish_rt_needs_command" -f -a "kata-check" -d 'Check whether this host can run containers in virtual machines: exit code 0 with hardware virtualisation, 1 without'
complete -c rt -n "__fish_rt_needs_command" -f -a "kata-env" -d 'Show what this rt and its host are made of, as Kata Containers does'
complete -c rt -n "__fish_rt_needs_command" -f -a "kill" -d 'Send a signal to the container\'s process'
complete -c rt -n "__fish_rt_needs_command" -f -a "list" -d 'List containers'
complete -c rt -n "__fish_rt_needs_command" -f -a "logs" -d 'Show the log of a sandbox: its guest\'s kernel and agent'
complete -c rt -n "__fish_rt_needs_command" -f -a "metrics" -d 'Serve what containers use to Prometheus'
complete -c rt -n "__fish_rt_needs_command" -f -a "pause" -d 'Suspend all processes of a container'
complete -c rt -n "__fish_rt_needs_command" -f -a "ps" -d 'Show the processes of a container'
complete -c rt -n "__fish_rt_needs_command" -f -a "restore" -d 'Not supported: the state of a container in a virtual machine is that of its machine'
complete -c rt -n "__fish_rt_needs_command" -f -a "resume" -d 'Resume all processes of a paused container'
complete -c rt -n "__fish_rt_needs_command" -f -a "run" -d 'Create and run a container'
complete -c rt -n "__fish_rt_needs_command" -f -a "spec" -d 'Create a new specification file'
complete -c rt -n "__fish_rt_needs_command" -f -a "start" -d 'Start a created container'
complete -c rt -n "__fish_rt_needs_command" -f -a "state" -d 'Show the state of a container'
complete -c rt -n "__fish_rt_needs_command" -f -a "stats" -d 'Show what containers use, in the guest and on the host'
complete -c rt -n "__fish_rt_needs_command" -f -a "trace" -d 'Show the timeline of a container\'s start'
complete -c rt -n "__fish_rt_needs_command" -f -a "update" -d 'Change the resource limits of a container'
complete -c rt -n "__fish_rt_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c rt -n "__fish_rt_using_subcommand checkpoint" -l image-path -r -F
complete -c rt -n "__fish_rt_using_subcommand checkpoint" -l work-path -r -F
complete -c rt -n "__fish_rt_using_subcommand checkpoint" -l manage-cgroups-mode -r
complete -c rt -n "__fish_rt_using_subcommand checkpoint" -l empty-ns -r
complete -c rt -n "__fish_rt_using_subcommand checkpoint" -l parent-path -r -F
complete -c rt -n "__fish_rt_using_subcommand checkpoint" -l status-fd -r
complete -c rt -n "__fish_rt_using_subcommand checkpoint" -l page-server -r
complete -c rt -n "__fish_rt_using_subcommand checkpoint" -l tcp-established
complete -c rt -n "__fish_rt_using_subcommand checkpoint" -l ext-unix-sk
complete -c rt -n "__fish_rt_using_subcommand checkpoint" -l shell-job
complete -c rt -n "__fish_rt_using_subcommand checkpoint" -l lazy-pages
complete -c rt -n "__fish_rt_using_subcommand checkpoint" -l file-locks
complete -c rt -n "__fish_rt_using_subcommand checkpoint" -l auto-dedup
complete -c rt -n "__fish_rt_using_subcommand checkpoint" -l leave-running
complete -c rt -n "__fish_rt_using_subcommand checkpoint" -l tcp-skip-in-flight
complete -c rt -n "__fish_rt_using_subcommand checkpoint" -l link-remap
complete -c rt -n "__fish_rt_using_subcommand checkpoint" -l pre-dump
complete -c rt -n "__fish_rt_using_subcommand checkpoint" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand config; and not __fish_seen_subcommand_from show import reference help" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand config; and not __fish_seen_subcommand_from show import reference help" -f -a "show" -d 'Print every setting\'s value, as a configuration file'
complete -c rt -n "__fish_rt_using_subcommand config; and not __fish_seen_subcommand_from show import reference help" -f -a "import" -d 'Print what Kata Containers\' configuration.toml means to rt, as a configuration file'
complete -c rt -n "__fish_rt_using_subcommand config; and not __fish_seen_subcommand_from show import reference help" -f -a "reference" -d 'Print the reference of all settings, in Markdown'
complete -c rt -n "__fish_rt_using_subcommand config; and not __fish_seen_subcommand_from show import reference help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c rt -n "__fish_rt_using_subcommand config; and __fish_seen_subcommand_from show" -s b -l bundle -d 'As it is for this bundle, whose annotations may change it' -r -F
complete -c rt -n "__fish_rt_using_subcommand config; and __fish_seen_subcommand_from show" -s f -l format -d 'Form of the output' -r -f -a "toml\t''
json\t''"
complete -c rt -n "__fish_rt_using_subcommand config; and __fish_seen_subcommand_from show" -l origin -d 'Also where each value comes from'
complete -c rt -n "__fish_rt_using_subcommand config; and __fish_seen_subcommand_from show" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand config; and __fish_seen_subcommand_from import" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand config; and __fish_seen_subcommand_from reference" -l annotations -d 'That of Kata\'s annotations instead'
complete -c rt -n "__fish_rt_using_subcommand config; and __fish_seen_subcommand_from reference" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand config; and __fish_seen_subcommand_from help" -f -a "show" -d 'Print every setting\'s value, as a configuration file'
complete -c rt -n "__fish_rt_using_subcommand config; and __fish_seen_subcommand_from help" -f -a "import" -d 'Print what Kata Containers\' configuration.toml means to rt, as a configuration file'
complete -c rt -n "__fish_rt_using_subcommand config; and __fish_seen_subcommand_from help" -f -a "reference" -d 'Print the reference of all settings, in Markdown'
complete -c rt -n "__fish_rt_using_subcommand config; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c rt -n "__fish_rt_using_subcommand create" -s b -l bundle -d 'The bundle\'s directory' -r -F
complete -c rt -n "__fish_rt_using_subcommand create" -l console-socket -d 'Unix socket that receives the upper end of the container\'s terminal' -r -F
complete -c rt -n "__fish_rt_using_subcommand create" -l pidfd-socket -d 'Unix socket that receives a pidfd of the monitor' -r -F
complete -c rt -n "__fish_rt_using_subcommand create" -l pid-file -d 'Write the monitor\'s PID to this file' -r -F
complete -c rt -n "__fish_rt_using_subcommand create" -l preserve-fds -d 'Pass this many descriptors beyond the standard streams: pipes and connected stream sockets' -r
complete -c rt -n "__fish_rt_using_subcommand create" -l no-pivot -d 'Accepted for runc\'s sake: inside its own VM a container may always pivot'
complete -c rt -n "__fish_rt_using_subcommand create" -l no-new-keyring -d 'Accepted for runc\'s sake: the host\'s keyring never reaches the guest'
complete -c rt -n "__fish_rt_using_subcommand create" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand debug" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rt -n "__fish_rt_using_subcommand delete" -s f -l force -d 'End the container first if it runs; a missing one is no error'
complete -c rt -n "__fish_rt_using_subcommand delete" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand doctor" -s f -l format -d 'Form of the output' -r -f -a "text\t''
json\t''"
complete -c rt -n "__fish_rt_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand events" -l interval -d 'Time between two statistics' -r
complete -c rt -n "__fish_rt_using_subcommand events" -l stats -d 'Show the statistics once and end'
complete -c rt -n "__fish_rt_using_subcommand events" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand exec" -l console-socket -d 'Unix socket that receives the upper end of the process\'s terminal' -r -F
complete -c rt -n "__fish_rt_using_subcommand exec" -l pidfd-socket -d 'Unix socket that receives a pidfd of the monitor' -r -F
complete -c rt -n "__fish_rt_using_subcommand exec" -l cwd -d 'Working directory in the container' -r
complete -c rt -n "__fish_rt_using_subcommand exec" -s e -l env -d 'Set an environment variable, NAME=VALUE; may be given again' -r
complete -c rt -n "__fish_rt_using_subcommand exec" -s u -l user -d 'UID or UID:GID' -r
complete -c rt -n "__fish_rt_using_subcommand exec" -s g -l additional-gids -d 'Another group; may be given again' -r
complete -c rt -n "__fish_rt_using_subcommand exec" -s p -l process -d 'File with the runtime-spec\'s process object' -r -F
complete -c rt -n "__fish_rt_using_subcommand exec" -l pid-file -d 'Write the monitor\'s PID to this file' -r -F
complete -c rt -n "__fish_rt_using_subcommand exec" -l process-label -d 'Accepted for runc\'s sake: the guest has no SELinux' -r
complete -c rt -n "__fish_rt_using_subcommand exec" -l apparmor -d 'Accepted for runc\'s sake: the guest has no AppArmor' -r
complete -c rt -n "__fish_rt_using_subcommand exec" -s c -l cap -d 'Add a capability; may be given again' -r
complete -c rt -n "__fish_rt_using_subcommand exec" -l preserve-fds -d 'Pass this many descriptors beyond the standard streams: pipes and connected stream sockets' -r
complete -c rt -n "__fish_rt_using_subcommand exec" -l cgroup -d 'Run it in this cgroup below the container\'s' -r
complete -c rt -n "__fish_rt_using_subcommand exec" -s t -l tty -d 'Give it a terminal'
complete -c rt -n "__fish_rt_using_subcommand exec" -s d -l detach -d 'Return once the process runs'
complete -c rt -n "__fish_rt_using_subcommand exec" -l no-new-privs -d 'Set no_new_privs'
complete -c rt -n "__fish_rt_using_subcommand exec" -l ignore-paused -d 'Also in a paused container'
complete -c rt -n "__fish_rt_using_subcommand exec" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand features" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand gc" -s f -l format -d 'Form of the answer' -r -f -a "text\t''
json\t''"
complete -c rt -n "__fish_rt_using_subcommand gc" -s n -l dry-run -d 'Show it only'
complete -c rt -n "__fish_rt_using_subcommand gc" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand install" -l into -d 'The host\'s root directory' -r -F
complete -c rt -n "__fish_rt_using_subcommand install" -l binary -d 'Path of rt, as the engine sees it [default: this one\'s]' -r -F
complete -c rt -n "__fish_rt_using_subcommand install" -s n -l dry-run -d 'Show the change only'
complete -c rt -n "__fish_rt_using_subcommand install" -l undo -d 'Take it back'
complete -c rt -n "__fish_rt_using_subcommand install" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand kata-check" -s f -l format -d 'Form of the output: as Kata Containers logs it, for people, for programs' -r -f -a "log\t''
table\t''
json\t''"
complete -c rt -n "__fish_rt_using_subcommand kata-check" -s v -l verbose -d 'Log what is fine beyond Kata\'s own checks, too'
complete -c rt -n "__fish_rt_using_subcommand kata-check" -s s -l strict -d 'Take warnings for errors'
complete -c rt -n "__fish_rt_using_subcommand kata-check" -s n -l no-network-checks -d 'Accepted for Kata\'s sake: rt never checks over the network'
complete -c rt -n "__fish_rt_using_subcommand kata-check" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand kata-env" -l json -d 'As JSON instead of TOML'
complete -c rt -n "__fish_rt_using_subcommand kata-env" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand kill" -s a -l all -d 'To all processes of the container'
complete -c rt -n "__fish_rt_using_subcommand kill" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand list" -s f -l format -d 'Form of the list' -r -f -a "table\t''
json\t''"
complete -c rt -n "__fish_rt_using_subcommand list" -s q -l quiet -d 'IDs only'
complete -c rt -n "__fish_rt_using_subcommand list" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand logs" -l log-level -d 'Records of this level and worse only' -r -f -a "emergency\t''
alert\t''
critical\t''
error\t''
warning\t''
notice\t''
info\t''
debug\t''"
complete -c rt -n "__fish_rt_using_subcommand logs" -s f -l format -d 'Form of the log; json: an object a line' -r -f -a "text\t''
json\t''"
complete -c rt -n "__fish_rt_using_subcommand logs" -s F -l follow -d 'Wait for more, until the container ends'
complete -c rt -n "__fish_rt_using_subcommand logs" -l console -d 'The guest\'s console instead: all that is left once the guest has ended'
complete -c rt -n "__fish_rt_using_subcommand logs" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand metrics" -l listen -d 'Where to listen; there is no access control: keep it on the host' -r
complete -c rt -n "__fish_rt_using_subcommand metrics" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand pause" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand ps" -s f -l format -d 'Form of the list' -r -f -a "table\t''
json\t''"
complete -c rt -n "__fish_rt_using_subcommand ps" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand restore" -l image-path -r -F
complete -c rt -n "__fish_rt_using_subcommand restore" -l work-path -r -F
complete -c rt -n "__fish_rt_using_subcommand restore" -l manage-cgroups-mode -r
complete -c rt -n "__fish_rt_using_subcommand restore" -l empty-ns -r
complete -c rt -n "__fish_rt_using_subcommand restore" -l console-socket -r -F
complete -c rt -n "__fish_rt_using_subcommand restore" -s b -l bundle -r -F
complete -c rt -n "__fish_rt_using_subcommand restore" -l pid-file -r -F
complete -c rt -n "__fish_rt_using_subcommand restore" -l lsm-profile -r
complete -c rt -n "__fish_rt_using_subcommand restore" -l lsm-mount-context -r
complete -c rt -n "__fish_rt_using_subcommand restore" -l tcp-established
complete -c rt -n "__fish_rt_using_subcommand restore" -l ext-unix-sk
complete -c rt -n "__fish_rt_using_subcommand restore" -l shell-job
complete -c rt -n "__fish_rt_using_subcommand restore" -l lazy-pages
complete -c rt -n "__fish_rt_using_subcommand restore" -l file-locks
complete -c rt -n "__fish_rt_using_subcommand restore" -l auto-dedup
complete -c rt -n "__fish_rt_using_subcommand restore" -s d -l detach
complete -c rt -n "__fish_rt_using_subcommand restore" -l no-subreaper
complete -c rt -n "__fish_rt_using_subcommand restore" -l no-pivot
complete -c rt -n "__fish_rt_using_subcommand restore" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand resume" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand run" -s b -l bundle -d 'The bundle\'s directory' -r -F
complete -c rt -n "__fish_rt_using_subcommand run" -l console-socket -d 'Unix socket that receives the upper end of the container\'s terminal' -r -F
complete -c rt -n "__fish_rt_using_subcommand run" -l pidfd-socket -d 'Unix socket that receives a pidfd of the monitor' -r -F
complete -c rt -n "__fish_rt_using_subcommand run" -l pid-file -d 'Write the monitor\'s PID to this file' -r -F
complete -c rt -n "__fish_rt_using_subcommand run" -l preserve-fds -d 'Pass this many descriptors beyond the standard streams: pipes and connected stream sockets' -r
complete -c rt -n "__fish_rt_using_subcommand run" -l trace -d 'Write the timeline of start and end to this file: a picture if its name ends in .svg or .html, else JSON for chrome://tracing and ui.perfetto.dev' -r -F
complete -c rt -n "__fish_rt_using_subcommand run" -l no-pivot -d 'Accepted for runc\'s sake: inside its own VM a container may always pivot'
complete -c rt -n "__fish_rt_using_subcommand run" -l no-new-keyring -d 'Accepted for runc\'s sake: the host\'s keyring never reaches the guest'
complete -c rt -n "__fish_rt_using_subcommand run" -s d -l detach -d 'Return once the container runs'
complete -c rt -n "__fish_rt_using_subcommand run" -l keep -d 'Keep the container\'s state when it has ended'
complete -c rt -n "__fish_rt_using_subcommand run" -l no-subreaper -d 'Accepted for runc\'s sake: rt reaps only what it starts'
complete -c rt -n "__fish_rt_using_subcommand run" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand spec" -s b -l bundle -d 'The bundle\'s directory' -r -F
complete -c rt -n "__fish_rt_using_subcommand spec" -l rootless -d 'For a container without root: with a user namespace that maps the caller\'s IDs, and the host\'s network'
complete -c rt -n "__fish_rt_using_subcommand spec" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand start" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand state" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand stats" -s f -l format -d 'Form of the answer; json: an array a line' -r -f -a "table\t''
json\t''"
complete -c rt -n "__fish_rt_using_subcommand stats" -l no-stream -d 'Show it once and end'
complete -c rt -n "__fish_rt_using_subcommand stats" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand trace" -s f -l format -d 'Form of the timeline [default: text on a terminal, else svg]' -r -f -a "json\t'For chrome://tracing and ui.perfetto.dev'
svg\t''
html\t'The same picture, as a page'
text\t'The same picture, for a terminal'"
complete -c rt -n "__fish_rt_using_subcommand trace" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rt -n "__fish_rt_using_subcommand update" -s r -l resources -d 'File with the runtime-spec\'s resources object, - for standard input; other flags are ignored then' -r -F
complete -c rt -n "__fish_rt_using_subcommand update" -l blkio-weight -d 'Weight of block I/O, 10 to 1000' -r
complete -c rt -n "__fish_rt_using_subcommand update" -l cpu-period -d 'CFS period in microseconds' -r
complete -c rt -n "__fish_rt_using_subcommand update" -l cpu-quota -d 'CFS quota in microseconds' -r
complete -c rt -n "__fish_rt_using_subcommand update" -l cpu-burst -d 'CFS burst in microseconds' -r
complete -c rt -n "__fish_rt_using_subcommand update" -l cpu-share -d 'CPU shares' -r
complete -c rt -n "__fish_rt_using_subcommand update" -l cpu-rt-period -d 'Real-time period in microseconds' -r
complete -c rt -n "__fish_rt_using_subcommand update" -l cpu-rt-runtime -d 'Real-time runtime in microseconds' -r
complete -c rt -n "__fish_rt_using_subcommand update" -l cpu-idle -d '1 for SCHED_IDLE, 0 for the default' -r
complete -c rt -n "__fish_rt_using_subcommand update" -l cpuset-cpus -d 'CPUs to use' -r
complete -c rt -n "__fish_rt_using_subcommand update" -l cpuset-mems -d 'Memory nodes to use' -r
complete -c rt -n "__fish_rt_using_subcommand update" -l kernel-memory -d 'Accepted for runc\'s sake: cgroup v2 has no such limit' -r
complete -c rt -n "__fish_rt_using_subcommand update" -l kernel-memory-tcp -d 'Accepted for runc\'s sake: cgroup v2 has no such limit' -r
complete -c rt -n "__fish_rt_using_subcommand update" -l memory -d 'Memory limit in bytes, or with a suffix k, m, g; -1 for none' -r
complete -c rt -n "__fish_rt_using_subcommand update" -l memory-reservation -d 'Memory reservation' -r
complete -c rt -n "__fish_rt_using_subcommand update" -l memory-swap -d 'Memory and swap; -1 for no limit' -r
complete -c rt -n "__fish_rt_using_subcommand update" -l pids-limit -d 'Most processes; -1 for no limit' -r
complete -c rt -n "__fish_rt_using_subcommand update" -l l3-cache-schema -d 'Refused: Intel RDT is the host\'s' -r
complete -c rt -n "__fish_rt_using_subcommand update" -l mem-bw-schema -d 'Refused: Intel RDT is the host\'s' -r
complete -c rt -n "__fish_rt_using_subcommand update" -s h -l help -d 'Print help'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "checkpoint" -d 'Not supported: the state of a container in a virtual machine is that of its machine'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "config" -d 'Show the configuration that is in force, or convert one of Kata Containers'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "create" -d 'Create a container; its process waits for `rt start`'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "debug" -d 'Open a shell in the guest itself, beside its agent'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "delete" -d 'Delete a container that has stopped'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "doctor" -d 'Show how this node\'s engines are wired to rt, what is wrong, and the line that mends it; exit code 1 if something is'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "events" -d 'Show statistics and out-of-memory events of a container'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "exec" -d 'Run another process in a container'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "features" -d 'Show what the runtime supports'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "gc" -d 'Remove what crashed sandboxes and older versions left'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "install" -d 'Make an engine know this rt as the runtime "rt"; shows the change first'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "kata-check" -d 'Check whether this host can run containers in virtual machines: exit code 0 with hardware virtualisation, 1 without'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "kata-env" -d 'Show what this rt and its host are made of, as Kata Containers does'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "kill" -d 'Send a signal to the container\'s process'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "list" -d 'List containers'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "logs" -d 'Show the log of a sandbox: its guest\'s kernel and agent'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "metrics" -d 'Serve what containers use to Prometheus'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "pause" -d 'Suspend all processes of a container'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "ps" -d 'Show the processes of a container'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "restore" -d 'Not supported: the state of a container in a virtual machine is that of its machine'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "resume" -d 'Resume all processes of a paused container'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "run" -d 'Create and run a container'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "spec" -d 'Create a new specification file'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "start" -d 'Start a created container'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "state" -d 'Show the state of a container'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "stats" -d 'Show what containers use, in the guest and on the host'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "trace" -d 'Show the timeline of a container\'s start'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "update" -d 'Change the resource limits of a container'
complete -c rt -n "__fish_rt_using_subcommand help; and not __fish_seen_subcommand_from checkpoint config create debug delete doctor events exec features gc install kata-check kata-env kill list logs metrics pause ps restore resume run spec start state stats trace update help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
