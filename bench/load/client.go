package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// report is what a client prints. Times are in milliseconds.
type report struct {
	Items      int     `json:"items"` // answers, or events of streams
	Errors     int     `json:"errors"`
	Late       int     `json:"late"` // requests that found no free connection in time (open)
	Seconds    float64 `json:"seconds"`
	P50        float64 `json:"p50"`
	P90        float64 `json:"p90"`
	P99        float64 `json:"p99"`
	CPUSeconds float64 `json:"cpuSeconds"` // of this client
}

func request(streams bool, tokens int) []byte {
	more := ""
	if streams {
		more = `,"stream":true,"stream_options":{"include_usage":true}`
	}
	text := fmt.Sprintf(`{"model":"bench","messages":[{"role":"user",`+
		`"content":"Say in one sentence what merit order dispatch is."}],"max_tokens":%d,"temperature":0%s}`, tokens, more)
	return fmt.Appendf(nil, "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nuser-agent: bench\r\n"+
		"accept: */*\r\nauthorization: Bearer bench\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s",
		len(text), text)
}

// wire is one connection, opened when it is first needed and again after an error.
type wire struct {
	address string
	socket  net.Conn
	reader  *bufio.Reader
	head    head
	text    []byte
}

func (w *wire) drop() {
	if w.socket != nil {
		w.socket.Close()
		w.socket = nil
	}
}

func (w *wire) open() error {
	if w.socket != nil {
		return nil
	}
	socket, err := net.DialTimeout("tcp", w.address, 5*time.Second)
	if err != nil {
		return err
	}
	w.socket, w.reader = socket, bufio.NewReaderSize(socket, 16<<10)
	return nil
}

var errNotOK = errors.New("not 200")

// ask sends a request and reads the head of its answer.
func (w *wire) ask(message []byte) error {
	if _, err := w.socket.Write(message); err != nil {
		return err
	}
	if err := readHead(w.reader, &w.head); err != nil {
		return err
	}
	if !bytes.HasPrefix(w.head.first, []byte("HTTP/1.1 200")) {
		return errNotOK
	}
	return nil
}

// once asks and reads the whole answer; it says how long that took.
func (w *wire) once(message []byte) (time.Duration, error) {
	if err := w.open(); err != nil {
		return 0, err
	}
	began := time.Now()
	err := w.ask(message)
	if err == nil {
		w.text, err = body(w.reader, &w.head, w.text)
	}
	took := time.Since(began)
	if err == nil && !bytes.Contains(w.text, []byte(`"chat.completion"`)) {
		err = errNotOK
	}
	if err != nil || w.head.close {
		w.drop()
	}
	return took, err
}

// tally is what one goroutine saw.
type tally struct {
	took   []time.Duration
	errors int
}

func sum(tallies []*tally, began time.Time) report {
	var all []time.Duration
	found := report{Seconds: time.Since(began).Seconds()}
	for _, each := range tallies {
		all = append(all, each.took...)
		found.Errors += each.errors
	}
	slices.Sort(all)
	at := func(share float64) float64 {
		if len(all) == 0 {
			return 0
		}
		return all[int(share*float64(len(all)-1))].Seconds() * 1e3
	}
	found.Items, found.P50, found.P90, found.P99 = len(all), at(0.5), at(0.9), at(0.99)
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	found.CPUSeconds = time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
	return found
}

// closed asks again on each connection as soon as it has its answer.
func closed(address string, connections int, lasts time.Duration) report {
	message := request(false, 64)
	tallies := make([]*tally, connections)
	var all sync.WaitGroup
	began := time.Now()
	until := began.Add(lasts)
	for number := range tallies {
		mine := &tally{took: make([]time.Duration, 0, 1<<12)}
		tallies[number] = mine
		all.Add(1)
		go func() {
			defer all.Done()
			w := &wire{address: address}
			defer w.drop()
			for time.Now().Before(until) {
				took, err := w.once(message)
				if err != nil {
					mine.errors++
					time.Sleep(5 * time.Millisecond)
					continue
				}
				mine.took = append(mine.took, took)
			}
		}()
	}
	all.Wait()
	return sum(tallies, began)
}

const mostOpen = 1000

// open asks at its times, on connections that are free then or new. A request counts from when it is written:
// when it was due, it was this program's turn to write it, not the other's to answer.
func open(address string, rate float64, lasts time.Duration) report {
	message := request(false, 64)
	free := make(chan *wire, mostOpen)
	for range mostOpen {
		free <- &wire{address: address}
	}
	// The last one given back is warm: a stack, not a queue.
	var lock sync.Mutex
	var warm []*wire
	take := func() *wire {
		lock.Lock()
		defer lock.Unlock()
		if last := len(warm) - 1; last >= 0 {
			w := warm[last]
			warm = warm[:last]
			return w
		}
		select {
		case w := <-free:
			return w
		default:
			return nil
		}
	}
	mine := &tally{}
	late := 0
	var all sync.WaitGroup
	began := time.Now()
	count := int(rate * lasts.Seconds())
	for number := range count {
		time.Sleep(time.Until(began.Add(time.Duration(float64(number) / rate * float64(time.Second)))))
		w := take()
		if w == nil {
			late++
			continue
		}
		all.Add(1)
		go func() {
			defer all.Done()
			took, err := w.once(message)
			lock.Lock()
			defer lock.Unlock()
			warm = append(warm, w)
			if err != nil {
				mine.errors++
				return
			}
			mine.took = append(mine.took, took)
		}()
	}
	all.Wait()
	found := sum([]*tally{mine}, began)
	found.Late = late
	return found
}

// streamed reads streams side by side; what it times is how old each event is when it comes.
func streamed(address string, streams, tokens int) report {
	message := request(true, tokens)
	tallies := make([]*tally, streams)
	var all sync.WaitGroup
	began := time.Now()
	for number := range tallies {
		mine := &tally{took: make([]time.Duration, 0, tokens)}
		tallies[number] = mine
		all.Add(1)
		go func() {
			defer all.Done()
			// Begun over one second, so that their events do not come all at once.
			time.Sleep(time.Until(began.Add(time.Duration(number) * time.Second / time.Duration(streams))))
			w := &wire{address: address}
			defer w.drop()
			if err := w.stream(message, mine); err != nil || len(mine.took) != tokens {
				mine.errors++
			}
		}()
	}
	all.Wait()
	return sum(tallies, began)
}

var mark = []byte(`"t=`)

func (w *wire) stream(message []byte, mine *tally) error {
	if err := w.open(); err != nil {
		return err
	}
	if err := w.ask(message); err != nil {
		return err
	}
	if !w.head.chunked {
		return errNoLength
	}
	for {
		size, err := readChunk(w.reader)
		if err != nil || size == 0 {
			return err
		}
		// An event may come in two chunks, and a chunk may hold two events.
		if w.text, err = more(w.reader, w.text, size); err != nil {
			return err
		}
		if _, err = w.reader.Discard(2); err != nil {
			return err
		}
		now := time.Now().UnixNano()
		for {
			event, rest, whole := bytes.Cut(w.text, []byte("\n\n"))
			if !whole {
				break
			}
			if _, after, found := bytes.Cut(event, mark); found {
				number, _, _ := bytes.Cut(after, []byte{' '})
				if sent, err := strconv.ParseInt(string(number), 10, 64); err == nil {
					mine.took = append(mine.took, time.Duration(now-sent))
				}
			}
			w.text = append(w.text[:0], rest...)
		}
	}
}
