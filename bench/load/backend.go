package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"time"
)

const completion = `{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"bench",` +
	`"choices":[{"index":0,"message":{"role":"assistant","content":"The cheapest plant that is free runs first; ` +
	`the next one takes only what the first cannot."},"logprobs":null,"finish_reason":"stop"}],` +
	`"usage":{"prompt_tokens":18,"completion_tokens":20,"total_tokens":38}}`

const about = `{"object":"list","data":[{"id":"bench","object":"model","created":1700000000,"owned_by":"bench"}],` +
	`"model_path":"bench","status":"ok"}`

func answer(text string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s",
		len(text), text)
}

// serve runs a pool on each address, for ever.
func serve(addresses []string, every time.Duration) {
	for _, address := range addresses {
		listener, err := net.Listen("tcp", address)
		if err != nil {
			fail(err.Error())
		}
		go func() {
			for {
				connection, err := listener.Accept()
				if err != nil {
					fail(err.Error())
				}
				go converse(connection, every)
			}
		}()
	}
	select {}
}

func converse(connection net.Conn, every time.Duration) {
	defer connection.Close()
	reader := bufio.NewReaderSize(connection, 16<<10)
	whole, other := answer(completion), answer(about)
	var h head
	var text []byte
	for {
		if readHead(reader, &h) != nil {
			return
		}
		post := bytes.HasPrefix(h.first, []byte("POST "))
		if h.length > 0 || h.chunked {
			var err error
			if text, err = body(reader, &h, text); err != nil {
				return
			}
		}
		var err error
		switch {
		case !post:
			_, err = connection.Write(other)
		case bytes.Contains(text, []byte(`"stream":true`)), bytes.Contains(text, []byte(`"stream": true`)):
			err = stream(connection, asked(text), every)
		default:
			_, err = connection.Write(whole)
		}
		if err != nil {
			return
		}
	}
}

// asked is how many tokens a request wants; some routers change the name to the newer one.
func asked(text []byte) int {
	var request struct {
		MaxTokens           int `json:"max_tokens"`
		MaxCompletionTokens int `json:"max_completion_tokens"`
	}
	_ = json.Unmarshal(text, &request)
	return max(1, request.MaxTokens, request.MaxCompletionTokens)
}

// stream sends a token each time, with the moment at which it was sent as its text.
func stream(connection net.Conn, tokens int, every time.Duration) error {
	const begin = `{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench","choices":`
	var event, out []byte
	send := func(text string) error {
		event = append(append(append(event[:0], "data: "...), text...), "\n\n"...)
		out = strconv.AppendInt(out, int64(len(event)), 16)
		out = append(append(append(out, "\r\n"...), event...), "\r\n"...)
		_, err := connection.Write(out)
		out = out[:0]
		return err
	}
	out = append(out, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"...)
	began := time.Now()
	for number := range tokens {
		time.Sleep(time.Until(began.Add(time.Duration(number) * every)))
		text := fmt.Sprintf(`%s[{"index":0,"delta":{"content":"t=%d "},"logprobs":null,"finish_reason":null}]}`,
			begin, time.Now().UnixNano())
		if err := send(text); err != nil {
			return err
		}
	}
	usage := fmt.Sprintf(`%s[],"usage":{"prompt_tokens":18,"completion_tokens":%d,"total_tokens":%d}}`,
		begin, tokens, tokens+18)
	if err := send(usage); err != nil {
		return err
	}
	if err := send("[DONE]"); err != nil {
		return err
	}
	_, err := connection.Write([]byte("0\r\n\r\n"))
	return err
}
