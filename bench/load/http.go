package main

import (
	"bufio"
	"bytes"
	"errors"
	"strconv"
)

// head is what framing needs of a message's head.
type head struct {
	first   []byte // a copy of the first line
	length  int    // of the body; -1: not said
	chunked bool
	close   bool
}

func readHead(r *bufio.Reader, h *head) error {
	h.first, h.length, h.chunked, h.close = h.first[:0], -1, false, false
	for number := 0; ; number++ {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		line = bytes.TrimRight(line, "\r\n")
		if number == 0 {
			h.first = append(h.first, line...)
			continue
		}
		if len(line) == 0 {
			return nil
		}
		name, value, _ := bytes.Cut(line, []byte{':'})
		value = bytes.TrimSpace(value)
		switch len(name) {
		case len("connection"):
			if bytes.EqualFold(name, []byte("connection")) {
				h.close = bytes.EqualFold(value, []byte("close"))
			}
		case len("content-length"):
			if bytes.EqualFold(name, []byte("content-length")) {
				if h.length, err = strconv.Atoi(string(value)); err != nil {
					return err
				}
			}
		case len("transfer-encoding"):
			if bytes.EqualFold(name, []byte("transfer-encoding")) {
				h.chunked = true
			}
		}
	}
}

// readChunk reads the size of the next chunk; 0 is the end, after which the trailers were read too.
func readChunk(r *bufio.Reader) (int, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	text, _, _ := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte{';'})
	size, err := strconv.ParseInt(string(text), 16, 32)
	if err != nil {
		return 0, err
	}
	for size == 0 {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			break
		}
	}
	return int(size), nil
}

var errNoLength = errors.New("a body of unknown length")

// body reads a whole body into `into`; what was there is gone.
func body(r *bufio.Reader, h *head, into []byte) ([]byte, error) {
	into = into[:0]
	if !h.chunked {
		if h.length < 0 {
			return into, errNoLength
		}
		return more(r, into, h.length)
	}
	for {
		size, err := readChunk(r)
		if err != nil || size == 0 {
			return into, err
		}
		if into, err = more(r, into, size); err != nil {
			return into, err
		}
		if _, err = r.Discard(2); err != nil {
			return into, err
		}
	}
}

func more(r *bufio.Reader, into []byte, size int) ([]byte, error) {
	for size > 0 {
		part, err := r.Peek(min(size, r.Size()))
		if err != nil {
			return into, err
		}
		into = append(into, part...)
		_, _ = r.Discard(len(part))
		size -= len(part)
	}
	return into, nil
}
