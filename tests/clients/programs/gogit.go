// go-git as a client: `clone URL DIR DEPTH`, `fetch DIR`, `push DIR REFSPEC`. A depth of 0 is the whole history.
package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	git "github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
)

func run(args []string) error {
	if args[0] == "clone" {
		depth, err := strconv.Atoi(args[3])
		if err != nil {
			return err
		}
		_, err = git.PlainClone(args[2], false, &git.CloneOptions{URL: args[1], Depth: depth, Progress: os.Stderr})
		return err
	}
	repository, err := git.PlainOpen(args[1])
	if err != nil {
		return err
	}
	if args[0] == "fetch" {
		err = repository.Fetch(&git.FetchOptions{RemoteName: "origin", Progress: os.Stderr})
	} else {
		// go-git takes no HEAD as a source.
		head, failed := repository.Head()
		if failed != nil {
			return failed
		}
		refspec := strings.Replace(args[2], "HEAD:", head.Name().String()+":", 1)
		spec := []config.RefSpec{config.RefSpec(refspec)}
		err = repository.Push(&git.PushOptions{RemoteName: "origin", RefSpecs: spec, Progress: os.Stderr})
	}
	if errors.Is(err, git.NoErrAlreadyUpToDate) {
		return nil
	}
	return err
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
