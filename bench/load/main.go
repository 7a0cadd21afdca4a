// The router benchmark's own servers and clients, small enough to leave the time to what stands between.
//
//	load backend -streamed-every 50ms HOST:PORT...    pools: answer at once, or stream max_tokens events
//	load closed  -connections 64 -seconds 4 HOST:PORT  as many requests as come back
//	load open    -rate 100 -seconds 5 HOST:PORT        so many requests a second, whatever comes back
//	load streams -streams 500 -tokens 100 HOST:PORT    streams side by side
//
// A client prints one JSON object when it is done. Requests are written as they stand and answers read with
// no more than framing needs: net/http would cost more than most of what is measured.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fail("a command must be given: backend, closed, open or streams")
	}
	// Little is allocated; a collection in the midst of it would be seen as latency.
	debug.SetGCPercent(1000)
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	every := flags.Duration("streamed-every", 50*time.Millisecond, "time between two events of a stream")
	connections := flags.Int("connections", 64, "connections side by side")
	seconds := flags.Float64("seconds", 4, "how long")
	rate := flags.Float64("rate", 100, "requests a second")
	streams := flags.Int("streams", 500, "streams side by side")
	tokens := flags.Int("tokens", 100, "events of a stream")
	_ = flags.Parse(os.Args[2:])
	if flags.NArg() == 0 {
		fail("an address must be given")
	}
	lasts := time.Duration(*seconds * float64(time.Second))
	var found report
	switch os.Args[1] {
	case "backend":
		serve(flags.Args(), *every)
		return
	case "closed":
		found = closed(flags.Arg(0), *connections, lasts)
	case "open":
		found = open(flags.Arg(0), *rate, lasts)
	case "streams":
		found = streamed(flags.Arg(0), *streams, *tokens)
	default:
		fail("no such command: " + os.Args[1])
	}
	_ = json.NewEncoder(os.Stdout).Encode(found)
}

func fail(why string) {
	fmt.Fprintln(os.Stderr, "load: "+why)
	os.Exit(2)
}
