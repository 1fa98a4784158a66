// What a Go program hears of a failure, and how soon: dials HOST PORT twice, the second time at
// once, and prints a line for each. Where HOST has addresses of both families, Go tries them by turns.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

func ask(address string) string {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return why(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello\n")); err != nil {
		return why(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return why(err)
	}
	said, err := io.ReadAll(conn)
	if err != nil {
		return why(err)
	}
	return fmt.Sprintf("%d bytes", len(said))
}

// Without addresses, of which the client's own is another one each time.
func why(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Op + ": " + op.Err.Error()
	}
	return err.Error()
}

func main() {
	for range 2 {
		begun := time.Now()
		said := ask(net.JoinHostPort(os.Args[1], os.Args[2]))
		fmt.Printf("%s (%.0f s)\n", said, time.Since(begun).Seconds())
	}
}
